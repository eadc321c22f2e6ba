"""The comparison stage: trains and scores what is missing, then writes tables and figures.

A run is a process of its own: python -m pipeline.comparison.compare CONFIG RUN [--restart]. It
stops, its state saved, soon after its standard input has ended: none outlives its comparison.
"""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure

from data_prep.common.console import steady_output
from data_prep.common.pages import data_uri, page_templates
from data_prep.common.provenance import code_version
from data_prep.common.tracking import quieten_mlflow
from data_prep.common.wording import run_option
from data_prep.executors.local import available_cores
from pipeline.blur import Form
from pipeline.comparison import table
from pipeline.comparison.table import at_rate
from pipeline.config import Config, load_config
from pipeline.data.slices import SliceDataset, Store, evenly_spread, open_store
from pipeline.distributed import choose_device
from pipeline.errors import InputError, Stopped
from pipeline.evaluation import figures
from pipeline.evaluation.evaluate import evaluate_run
from pipeline.evaluation.run import earlier_scores, evaluation_folder, store_to_score
from pipeline.evaluation.scoring import load_networks
from pipeline.figures import write_figure
from pipeline.files import locked, run_folder, work_folder, write_text
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import Shape
from pipeline.losses.registry import TERMS, build_term
from pipeline.models.config import describe_levels
from pipeline.tracking.runs import track
from pipeline.training.checkpoint import find_checkpoint, latest_checkpoint
from pipeline.training.control import RateController
from pipeline.training.description import SIMULATED, run_name, run_tags
from pipeline.training.loop import load_objective
from pipeline.training.train import check_unchanged, train_run

# The blur term's second form is a row of its own where no terms are named.
DEFAULT = (*TERMS, "blur:positive_definite")
# Epochs of `compare.quick`, and their steps: enough to see that everything works.
QUICK_EPOCHS, QUICK_STEPS = 8, 25
SHOWN_SUBJECTS = 6
# Keys whose values stand above the tables.
SHARED = {
    "training": ("epochs", "epoch_steps", "batch_size", "learning_rate"),
    "likelihood": ("warmup_epochs", "constant", "kernel_size"),
    "model": ("width",),
    "evaluation": ("checkpoint", "max_slices"),
}
# A scheduler's signal to all of a job's processes has come to a run as well, and a second one
# would not let its state be saved.
GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class Entry:
    """One run: its term as it was asked for, the rate that it is held at in nats, and its seed.

    rate 0: none is held, β stays training.beta.
    """

    term: str
    rate: float
    seed: int
    run: str
    config: Config

    @property
    def checkpoints(self) -> Path:
        return run_folder(self.run) / "checkpoints"

    def __str__(self) -> str:
        return f"{self.term}, {at_rate(self.rate)}, seed {self.seed}"


def compare(config: Config, name: str, restart: bool = False) -> Path:
    """Train and score every term × rate × seed that is not done yet; returns the folder of results.

    WORK/comparisons/NAME/ then holds report.html, table.md, runs.csv, differences.csv, figures/ and
    logs/; the runs are WORK/runs/NAME-TERM-rRATE-sSEED. Runs that were interrupted go on; ones that
    fail are named in the table.

    Raises:
        InputError: terms can't be built, runs of these names were made with another configuration
            (unless `restart`), or a run failed.
    """
    run_folder(name)  # refuses names that are no plain folder names
    store, scored = open_store(config.data.store, work_folder()), store_to_score(config)
    split = config.evaluation.split
    if not scored.subjects(split):
        raise InputError(f"store {scored.name} has no subjects in split {split}")
    entries, absent = plan(config, name, store.image_shape)
    title = f"{name}-quick" if config.compare.quick else name
    folder = work_folder() / "comparisons" / title
    busy = f"another process is working on {folder}: wait for it, or choose a new {run_option()}…"
    with locked(folder / ".lock", busy):
        todo = [entry for entry in entries if restart or not _finished(entry, store)]
        for term, reason in absent.items():
            print(f"{term} is left out: {reason}")
        if todo:
            load_networks(config.evaluation)  # fails now, not after hours
        failed = _train_and_score(todo, jobs_at_once(config), folder, len(entries), restart)
        made = [entry for entry in entries if entry.run not in failed]
        first = "; the first: {}, {}".format(*next(iter(failed.items()), ("", "")))
        if not made:
            raise InputError(f"no run of {title} was completed{first}")
        runs = pd.DataFrame([_outcome(entry) for entry in made])
        place = evaluation_folder(made[0].config, scored)
        folders = {entry.run: run_folder(entry.run) / place for entry in made}
        differences = table.differences_of(runs, folders)
        missing = [*absent.items(), *((f"run {run}", why) for run, why in failed.items())]
        page = {
            "title": title,
            "simulated": scored.simulated,
            "conditions": _conditions(made[0].config, store, scored),
            "rates": table.tables_at(runs, differences),
            "notes": table.notes(runs, differences, missing),
        }
        pictures = {}
        for file, figure in _figures(runs, differences, made, scored, folders).items():
            write_figure(folder / "figures" / file, figure)
            pictures[file] = data_uri((folder / "figures" / file).read_bytes())
        template = page_templates("pipeline.comparison").get_template("comparison.html")
        texts = {
            "runs.csv": runs.to_csv(index=False),
            "differences.csv": differences.to_csv(index=False),
            "table.md": _markdown(page),
            "report.html": template.render(page, figures=pictures),
        }
        for file, text in texts.items():
            write_text(folder / file, text)
        _track(config, store, folder, texts, list(pictures), made)
        print(f"{texts['table.md']}\nreport: {folder / 'report.html'}")
        if failed:
            told = "runs failed and are not in the table"
            raise InputError(f"{len(failed)} of {len(entries)} {told}{first}")
    return folder


def plan(config: Config, name: str, image_shape: Shape) -> tuple[list[Entry], dict[str, str]]:
    """All runs of a comparison, seed by seed, and the terms that are left out, with the reasons.

    name: of the comparison; image_shape: (C,H,W) of the store. Raises InputError where a term is
    unknown, or is named and can't judge such images, something is named twice, or no rate is given.
    """
    settings = config.compare
    rates = settings.rate_targets or (config.training.rate_target,)
    if None in rates:
        raise InputError(
            "terms are compared at one rate: give it in nats with --compare.rate_targets [400], "
            "or hold β instead with [0]"
        )
    if settings.quick:
        config, name = quick(config), f"{name}-quick"
    if config.likelihood.warmup_epochs >= config.training.epochs:
        raise InputError(
            f"likelihood.warmup_epochs {config.likelihood.warmup_epochs} leaves nothing of "
            f"training.epochs {config.training.epochs} to compare: no term would be trained"
        )
    terms, absent = _terms(config, image_shape)
    threads = config.training.threads or max(1, available_cores() // jobs_at_once(config))
    # By steps, never by the clock, which slow terms would lose against.
    config = replace(config, training=replace(config.training, threads=threads, max_minutes=0.0))
    entries = []
    for seed, rate, term in itertools.product(config.compare.seeds, rates, terms):
        training = replace(config.training, rate_target=rate or None, seed=seed)
        own = replace(config, training=training, likelihood=terms[term])
        run = f"{name}-{term.replace(':', '_')}-r{rate:g}-s{seed}"
        entries.append(Entry(term, float(rate or 0.0), seed, run, own))
    if len({entry.run for entry in entries}) < len(entries):
        raise InputError(
            f"compare.terms, seeds or rate_targets name something twice: {list(settings.terms)}, "
            f"{list(settings.seeds)}, {list(rates)}"
        )
    return entries, absent


def _terms(
    config: Config, image_shape: Shape
) -> tuple[dict[str, LikelihoodConfig], dict[str, str]]:
    """The section `likelihood` of each term; and of those that can't be built here, the reason."""
    named: dict[str, LikelihoodConfig] = {}
    absent: dict[str, str] = {}
    for name in config.compare.terms or DEFAULT:
        term, colon, form = name.partition(":")
        forms = get_args(Form)
        if term not in TERMS or (colon and (term != "blur" or form not in forms)):
            blurs = ", ".join(f"blur:{form}" for form in forms)
            raise InputError(f"compare.terms must be of {', '.join(TERMS)}, {blurs}, not {name!r}")
        likelihood = replace(config.likelihood, term=term)
        if form:
            likelihood = replace(likelihood, form=form)  # type: ignore[arg-type]
        try:
            build_term(likelihood, image_shape)
        except (InputError, ValueError) as error:
            if config.compare.terms:
                raise InputError(str(error)) from error
            absent[name] = str(error)
        else:
            if likelihood not in named.values():  # blur, and blur in the form that it has anyway
                named[name] = likelihood
    return named, absent


def quick(config: Config) -> Config:
    """One seed and a few hundred steps: a trial of the whole, whose scores mean little."""
    training, warmup = config.training, config.likelihood.warmup_epochs
    training = replace(
        training,
        epochs=min(QUICK_EPOCHS, training.epochs),
        epoch_steps=min(QUICK_STEPS, training.epoch_steps or QUICK_STEPS),
        rate_warmup_steps=min(QUICK_STEPS, training.rate_warmup_steps),
    )
    return replace(
        config,
        compare=replace(config.compare, seeds=config.compare.seeds[:1]),
        likelihood=replace(config.likelihood, warmup_epochs=min(2, warmup)),
        training=training,
        prior=replace(config.prior, images=min(1000, config.prior.images)),
        evaluation=replace(config.evaluation, samples=min(64, config.evaluation.samples)),
    )


def jobs_at_once(config: Config) -> int:
    """`compare.jobs`, or for 0 a run a core on a CPU, and one run on a GPU."""
    on_cpu = choose_device(config.training.device).type == "cpu"
    return config.compare.jobs or (available_cores() if on_cpu else 1)


def _finished(entry: Entry, store: Store) -> bool:
    """Whether a run is trained and scored. Raises InputError where it was made otherwise."""
    try:
        checkpoint = latest_checkpoint(entry.checkpoints)
        if checkpoint is None:
            return False
        check_unchanged(checkpoint.state, entry.config, store, entry.run)
    except InputError as error:
        way_out = f"or remove {run_folder(entry.run)}, and the same command makes it anew"
        raise InputError(f"{error}; {way_out}") from error
    try:
        return checkpoint.state.finished and earlier_scores(entry.config, entry.run) is not None
    except InputError:  # stopped before its fits, which the same training makes
        return False


def _train_and_score(
    todo: Sequence[Entry], jobs: int, folder: Path, total: int, restart: bool
) -> dict[str, str]:
    """A process a run, `jobs` at once; the reasons of those that failed, by run."""
    logs, waiting, failed = folder / "logs", list(todo), {}
    running: dict[str, tuple[Entry, subprocess.Popen[bytes], float]] = {}
    if todo:
        count = f"{len(todo)} of {total} runs to do, {jobs} at once"
        print(f"comparison {folder.name}: {count}; logs: {logs}", flush=True)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                entry = waiting.pop(0)
                running[entry.run] = entry, _started(entry, logs, restart), time.monotonic()
            time.sleep(0.1)
            for run, (entry, process, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                outcome = f"done in {(time.monotonic() - began) / 60:.1f} min"
                if process.returncode:
                    failed[run] = _reason(logs / f"{run}.log", process.returncode)
                    outcome = f"FAILED, {failed[run]}"
                done = total - len(waiting) - len(running)
                print(f"{entry}: {outcome} ({done} of {total})", flush=True)
    finally:
        for _, process, _ in running.values():
            process.terminate()  # saves its state
        for _, process, _ in running.values():
            process.wait()
    return failed


def _started(entry: Entry, logs: Path, restart: bool) -> subprocess.Popen[bytes]:
    settings = logs / f"{entry.run}.yaml"
    write_text(settings, yaml.safe_dump(asdict(entry.config), sort_keys=False, allow_unicode=True))
    words = [sys.executable, "-m", "pipeline.comparison.compare", str(settings), entry.run]
    with (logs / f"{entry.run}.log").open("ab") as stream:
        return subprocess.Popen(
            words + ["--restart"] * restart,
            stdin=subprocess.PIPE,  # ends with this process, and the run with it
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C is the comparison's, which passes it on
        )


def _reason(log: Path, code: int) -> str:
    """Why a run failed: its signal, or the last line of its log."""
    if code < 0:
        return f"stopped by {signal.Signals(-code).name} (see {log})"
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").split("\n")]
    last = next((line for line in reversed(lines) if line), f"exit code {code}")
    return f"{last.removeprefix('error: ')} (see {log})"


def _outcome(entry: Entry) -> dict[str, Any]:
    """A run's row: its scores, means over families, and how its rate was held."""
    scores = earlier_scores(entry.config, entry.run)
    if scores is None:
        raise InputError(f"run {entry.run} has lost its scores: give the same command again")
    controller = RateController(**find_checkpoint(entry.checkpoints, "last").state.controller)
    labels = {"term": entry.term, "rate_target": entry.rate, "seed": entry.seed, "run": entry.run}
    held = {"rate_settled": controller.settled, "beta": controller.beta}
    return labels | held | {key: interval["mean"] for key, interval in scores.items()}


def _conditions(config: Config, store: Store, scored: Store) -> dict[str, str]:
    """The conditions that all runs share, as a reader needs to judge or to repeat them."""
    split = config.evaluation.split

    def counted(place: Store, part: str) -> str:
        entries = place.subjects(part)
        images = sum(len(entry.slice_indices) for entry in entries)
        return f"{images} images of {len({entry.family for entry in entries})} families"

    alike = [
        f"{section}.{key} {getattr(getattr(config, section), key)}"
        for section, keys in SHARED.items()
        for key in keys
    ]
    return {
        "store": f"{store.name}, digest {store.digest[:12]}, images {store.image_shape}",
        "trained on": f"train, {counted(store, 'train')}",
        "scored on": f"{split} of store {scored.name}, {counted(scored, split)}",
        "alike": ", ".join([*alike, f"levels {describe_levels(config.model.levels)}"]),
        "not alike": "the term; weights, order, augmentation and noise by the seed",
        "torch": torch.__version__,
    }


def _markdown(page: dict[str, Any]) -> str:
    conditions = "\n".join(f"- {key}: {value}" for key, value in page["conditions"].items())
    parts = [f"# Comparison {page['title']}", SIMULATED * page["simulated"], conditions]
    for heading, tables in page["rates"]:
        parts += [f"## {heading}", *(each.markdown for each in tables)]
    return "\n\n".join(part for part in [*parts, *page["notes"]] if part) + "\n"


@torch.no_grad()
def _figures(
    runs: pd.DataFrame,
    differences: pd.DataFrame,
    made: Sequence[Entry],
    store: Store,
    folders: dict[str, Path],
) -> dict[str, Figure]:
    """Scores, differences; and of the first seed at each rate, the same slices and calibration."""
    settings = made[0].config.evaluation
    where = f"{settings.split} subjects of store {store.name}"
    where += ", SIMULATED people" * store.simulated
    drawn = {"scores.png": table.draw_scores(runs, f"Scores of {where}")}
    if len(differences):
        title = f"Paired differences, 95% intervals over families, {where}"
        drawn["differences.png"] = table.draw_differences(differences, title)
    subjects = store.subjects(settings.split)
    data = SliceDataset(store, [subjects[i] for i in evenly_spread(len(subjects), SHOWN_SUBJECTS)])
    middle = [(int(a) + int(b)) // 2 for a, b in itertools.pairwise(data.first)]
    images = data.__getitems__(middle)
    rates = dict.fromkeys(entry.rate for entry in made)
    for rate in rates:
        mine = [entry for entry in made if entry.rate == rate]  # seed by seed
        first = {e.term: e for e in mine} | {e.term: e for e in reversed(mine)}
        suffix = f"-{rate:g}.png" if len(rates) > 1 else ".png"
        title = f"at {at_rate(rate)}, the first seed, {where}"
        pictures = {"original": images}
        for term, entry in first.items():
            checkpoint = find_checkpoint(entry.checkpoints, settings.checkpoint)
            vae = load_objective(checkpoint, entry.config).vae
            pictures[term.replace(":", "\n")] = vae.decode(vae.encode(images).mean)
        names = [entry.subject for entry in data.subjects]
        drawn[f"reconstructions{suffix}"] = table.side_by_side(pictures, names, f"Slices {title}")
        scored = {term: folders[entry.run] for term, entry in first.items()}
        if figure := figures.calibration_of(scored, f"Calibration {title}"):
            drawn[f"calibration{suffix}"] = figure
    return drawn


def _track(
    config: Config,
    store: Store,
    folder: Path,
    texts: dict[str, str],
    drawn: Sequence[str],
    made: Sequence[Entry],
) -> None:
    """One MLflow run for the comparison, with the training runs as its children."""
    memory, work = folder / "mlflow_run.txt", work_folder()
    earlier = memory.read_text("utf-8").strip() if memory.exists() else None
    name = f"{store.name}, {len({entry.term for entry in made})} terms compared ({folder.name})"
    tags = {
        "stage": "comparison",
        "dataset": store.name,
        "size": str(store.image_shape[-1]),
        "simulated": str(store.simulated).lower(),
        "store_digest": store.digest,
        **code_version(),
    }
    with track(config.tracking, work, name, continued=earlier, tags=tags) as parent:
        if parent.run_id is None:
            return
        write_text(memory, f"{parent.run_id}\n")
        parent.note(texts["table.md"])
        for file, text in texts.items():
            parent.text(text, file)
        for file in drawn:
            parent.file(folder / "figures" / file, "figures")
        for entry in made:
            state = find_checkpoint(entry.checkpoints, "last").state
            own = {"stage": "training", **run_tags(entry.config, store, entry.run)}
            name, continued = run_name(entry.config, store.name, entry.run), state.tracking_run
            with track(config.tracking, work, name, continued=continued, tags=own) as child:
                child.tags({"mlflow.parentRunId": parent.run_id, "compare.term": entry.term})


def main(path: str, run: str, restart: bool) -> int:
    """One run, trained and scored; returns 0 done, 2 bad input, 128 + N for signal N."""
    steady_output()
    quieten_mlflow()
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    try:
        # The process of a comparison that was killed a moment ago may still be saving its state.
        with locked(Path(f"{path}.lock")):
            train_run(load_config(path), run, restart)
            evaluate_run(load_config(path), run)
    except (InputError, OSError) as error:
        print(f"error: {error}")
        return 2
    except Stopped as error:
        print(f"{error}, state saved")
        return 128 + error.number
    return 0


def _end_with_the_input() -> None:
    sys.stdin.read()
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], "--restart" in sys.argv[3:]))
