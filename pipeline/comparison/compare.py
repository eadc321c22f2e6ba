"""The comparison stage: trains and scores what is missing, then writes tables and figures."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure

from data_prep.common.pages import data_uri, page_templates
from data_prep.common.provenance import code_version
from data_prep.common.tracking import flat_keys
from data_prep.common.wording import run_option
from pipeline.comparison import figures
from pipeline.comparison.plan import Entry, at_rate, jobs_at_once, plan
from pipeline.comparison.table import differences_of, notes, tables_at
from pipeline.config import Config
from pipeline.data.slices import SliceDataset, Store, evenly_spread, open_store
from pipeline.errors import InputError
from pipeline.evaluation.networks import load_networks
from pipeline.evaluation.record import earlier_scores, evaluation_folder, store_to_score
from pipeline.figures import write_figure
from pipeline.files import locked, run_folder, work_folder, write_text
from pipeline.models.config import describe_levels
from pipeline.tracking.runs import track
from pipeline.training.checkpoint import find_checkpoint, latest_checkpoint
from pipeline.training.control import RateController
from pipeline.training.description import SIMULATED, run_name, run_tags
from pipeline.training.loop import load_objective
from pipeline.training.train import check_unchanged

SHOWN_SUBJECTS = 6
# Keys whose values stand above the tables.
SHARED = (
    "training.epochs", "training.epoch_steps", "training.batch_size", "training.learning_rate",
    "likelihood.warmup_epochs", "likelihood.constant", "likelihood.kernel_size", "model.width",
    "evaluation.checkpoint", "evaluation.max_slices",
)  # fmt: skip


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
        differences = differences_of(runs, folders)
        missing = [*absent.items(), *((f"run {run}", why) for run, why in failed.items())]
        page = {
            "title": title,
            "simulated": scored.simulated,
            "conditions": _conditions(made[0].config, store, scored),
            "rates": tables_at(runs, differences),
            "notes": notes(runs, differences, missing),
        }
        drawn = _figures(runs, differences, made, scored, folders)
        for file, figure in drawn.items():
            write_figure(folder / "figures" / file, figure)
        pictures = {file: data_uri((folder / "figures" / file).read_bytes()) for file in drawn}
        template = page_templates("pipeline.comparison").get_template("comparison.html")
        texts = {
            "runs.csv": runs.to_csv(index=False),
            "differences.csv": differences.to_csv(index=False),
            "table.md": _markdown(page),
            "report.html": template.render(page, figures=pictures),
        }
        for file, text in texts.items():
            write_text(folder / file, text)
        _track(config, store, folder, texts, list(drawn), made)
        print(f"{texts['table.md']}\nreport: {folder / 'report.html'}")
        if failed:
            told = "runs failed and are not in the table"
            raise InputError(f"{len(failed)} of {len(entries)} {told}{first}")
    return folder


def _finished(entry: Entry, store: Store) -> bool:
    """Whether a run is trained and scored. Raises InputError where it was made otherwise."""
    folder = run_folder(entry.run)
    try:
        checkpoint = latest_checkpoint(folder / "checkpoints")
        if checkpoint is None:
            return False
        check_unchanged(checkpoint.state, entry.config, store, entry.run)
    except InputError as error:
        raise InputError(
            f"{error}; or remove {folder}, and the same command makes it anew"
        ) from error
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
    words = [sys.executable, "-m", "pipeline.comparison.worker", str(settings), entry.run]
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
    lines = log.read_text("utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
    return f"{last.removeprefix('error: ')} (see {log})"


def _outcome(entry: Entry) -> dict[str, Any]:
    """A run's row: its scores, means over families, and how its rate was held."""
    scores = earlier_scores(entry.config, entry.run)
    if scores is None:
        raise InputError(f"run {entry.run} has lost its scores: give the same command again")
    state = find_checkpoint(run_folder(entry.run) / "checkpoints", "last").state
    controller = RateController(**state.controller)
    labels = {"term": entry.term, "rate_target": entry.rate, "seed": entry.seed, "run": entry.run}
    held = {"rate_settled": controller.settled, "beta": controller.beta}
    return labels | held | {key: interval["mean"] for key, interval in scores.items()}


def _conditions(config: Config, store: Store, scored: Store) -> list[tuple[str, str]]:
    """What all runs have in common, as a reader needs to judge or to repeat them."""
    split, keys = config.evaluation.split, dict(flat_keys(asdict(config)))
    levels = f"levels {describe_levels(config.model.levels)}"
    return [
        ("store", f"{store.name}, digest {store.digest[:12]}, images {store.image_shape}"),
        ("trained on", f"train, {_counted(store, 'train')}"),
        ("scored on", f"{split} of store {scored.name}, {_counted(scored, split)}"),
        ("alike", ", ".join([f"{key} {keys[key]}" for key in SHARED] + [levels])),
        ("not alike", "the term; weights, order, augmentation and noise by the seed"),
        ("torch", version("torch")),
    ]


def _counted(store: Store, split: str) -> str:
    entries = store.subjects(split)
    images = sum(len(entry.slice_indices) for entry in entries)
    return f"{images} images of {len({entry.family for entry in entries})} families"


def _markdown(page: dict[str, Any]) -> str:
    conditions = "\n".join(f"- {key}: {value}" for key, value in page["conditions"])
    parts = [f"# Comparison {page['title']}", SIMULATED * page["simulated"], conditions]
    for heading, tables in page["rates"]:
        parts += [f"## {heading}", *(table.markdown for table in tables)]
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
    split = made[0].config.evaluation.split
    where = f"{split} subjects of store {store.name}" + ", SIMULATED people" * store.simulated
    drawn = {"scores.png": figures.scores(runs, f"Scores of {where}")}
    if len(differences):
        title = f"Paired differences, 95% intervals over families, {where}"
        drawn["differences.png"] = figures.differences(differences, title)
    subjects = store.subjects(split)
    data = SliceDataset(store, [subjects[i] for i in evenly_spread(len(subjects), SHOWN_SUBJECTS)])
    middle = [(a + b) // 2 for a, b in zip(data.first[:-1], data.first[1:], strict=True)]
    images = torch.stack([data[int(index)] for index in middle])
    rates = dict.fromkeys(entry.rate for entry in made)
    for rate in rates:
        mine = [entry for entry in made if entry.rate == rate]  # seed by seed
        first = {e.term: e for e in mine} | {e.term: e for e in reversed(mine)}
        suffix = f"-{rate:g}.png" if len(rates) > 1 else ".png"
        title = f"at {at_rate(rate)}, the first seed, {where}"
        pictures = {"original": images}
        for term, entry in first.items():
            checkpoint = find_checkpoint(run_folder(entry.run) / "checkpoints", "last")
            vae = load_objective(checkpoint, entry.config).vae
            pictures[term.replace(":", "\n")] = vae.decode(vae.encode(images).mean)
        names = [entry.subject for entry in data.subjects]
        drawn[f"reconstructions{suffix}"] = figures.side_by_side(pictures, names, f"Slices {title}")
        evaluations = {term: folders[entry.run] for term, entry in first.items()}
        if figure := figures.calibration(evaluations, f"Calibration {title}"):
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
    tags = {"stage": "comparison", "dataset": store.name, "size": str(store.image_shape[-1]),
            "simulated": str(store.simulated).lower(), "store_digest": store.digest,
            **code_version()}  # fmt: skip
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
            state = find_checkpoint(run_folder(entry.run) / "checkpoints", "last").state
            own = {"stage": "training", **run_tags(entry.config, store, entry.run)}
            name, continued = run_name(entry.config, store.name, entry.run), state.tracking_run
            with track(config.tracking, work, name, continued=continued, tags=own) as child:
                child.tags({"mlflow.parentRunId": parent.run_id, "compare.term": entry.term})
