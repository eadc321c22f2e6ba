"""The comparison stage: trains and scores what is missing, then writes tables and figures."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure

from data_prep.common.invocation import run_option
from data_prep.common.pages import data_uri, page_templates
from data_prep.common.provenance import code_version
from data_prep.executors.local import available_cores
from pipeline.commands.train import check_unchanged
from pipeline.comparison import figures
from pipeline.comparison.plan import Entry, at_rate, jobs_at_once, plan
from pipeline.comparison.table import differences_of, notes, tables_at
from pipeline.config import Config
from pipeline.data.slices import SliceDataset, Store, evenly_spread, open_store
from pipeline.errors import InputError
from pipeline.evaluation.networks import load_networks
from pipeline.evaluation.record import earlier_scores, evaluation_folder, store_to_score
from pipeline.evaluation.scores import headline_names
from pipeline.figures import write_figure
from pipeline.files import locked, run_folder, work_folder, write_text
from pipeline.models.config import describe_levels
from pipeline.progress import Reporter
from pipeline.tracking.names import epoch_name
from pipeline.tracking.runs import track
from pipeline.training.checkpoint import find_checkpoint, latest_checkpoint
from pipeline.training.description import SIMULATED, run_name, run_tags
from pipeline.training.loop import load_objective
from pipeline.training.rate import RateController

SHOWN_SUBJECTS = 6


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
    work = work_folder()
    store, scored = open_store(config.data.store, work), store_to_score(config)
    split = config.evaluation.split
    if not scored.subjects(split):
        raise InputError(f"store {scored.name} has no subjects in split {split}")
    entries, absent = plan(config, name, store.image_shape)
    title = f"{name}-quick" if config.compare.quick else name
    folder = work / "comparisons" / title
    busy = f"another process is working on {folder}: wait for it, or choose a new {run_option()}…"
    with locked(folder / ".lock", busy):
        todo = [entry for entry in entries if restart or not _finished(entry, store)]
        for term, reason in absent.items():
            print(f"{term} is left out: {reason}")
        if todo:
            load_networks(config.evaluation)  # fails now, not after hours
        failed = _train_and_score(todo, jobs_at_once(config), folder, len(entries), restart)
        made = [entry for entry in entries if entry.run not in failed]
        if not made:
            run, reason = next(iter(failed.items()))
            raise InputError(f"no run of {title} was completed; the first: {run}, {reason}")
        runs = pd.DataFrame([_outcome(entry) for entry in made])
        evaluations = {
            entry.run: run_folder(entry.run) / evaluation_folder(entry.config, scored)
            for entry in made
        }
        differences = differences_of(runs, evaluations)
        missing = [*absent.items(), *((f"run {run}", why) for run, why in failed.items())]
        page = {
            "title": title,
            "simulated": scored.simulated,
            "conditions": _conditions(config, entries, store, scored),
            "rates": tables_at(runs, differences),
            "notes": notes(runs, differences, missing),
        }
        board = _markdown(page)
        drawn = _figures(runs, differences, made, scored, evaluations)
        for file, figure in drawn.items():
            write_figure(folder / "figures" / file, figure)
        addresses = {file: data_uri((folder / "figures" / file).read_bytes()) for file in drawn}
        template = page_templates("pipeline.comparison").get_template("comparison.html")
        texts = {
            "runs.csv": runs.to_csv(index=False),
            "differences.csv": differences.to_csv(index=False),
            "table.md": board,
            "report.html": template.render(page, figures=addresses),
        }
        for file, text in texts.items():
            write_text(folder / file, text)
        _track(config, store, scored, folder, texts, list(drawn), made, runs)
        print(f"{board}\nreport: {folder / 'report.html'}")
        if failed:
            run, reason = next(iter(failed.items()))
            raise InputError(
                f"{len(failed)} of {len(entries)} runs failed and are not in the table; the first: "
                f"{run}, {reason}"
            )
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
    return checkpoint.state.finished and earlier_scores(entry.config, entry.run) is not None


def _train_and_score(
    todo: Sequence[Entry], jobs: int, folder: Path, total: int, restart: bool
) -> dict[str, str]:
    """A process a run, `jobs` at once; the reasons of those that failed, by run."""
    if todo:
        print(f"comparison {folder.name}: {len(todo)} of {total} runs to do, {jobs} at once; "
              f"logs: {folder / 'logs'}", flush=True)  # fmt: skip
    waiting, done = deque(todo), total - len(todo)
    running: dict[str, tuple[Entry, subprocess.Popen[bytes], float]] = {}
    failed: dict[str, str] = {}
    try:
        with Reporter(seconds=30) as reporter:
            while waiting or running:
                while waiting and len(running) < jobs:
                    entry = waiting.popleft()
                    running[entry.run] = entry, _started(entry, folder, restart), time.monotonic()
                time.sleep(0.1)
                for run, (entry, process, began) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[run]
                    done += 1
                    if process.returncode:
                        failed[run] = _reason(folder / "logs" / f"{run}.log", process.returncode)
                        print(f"{entry}: FAILED, {failed[run]}", flush=True)
                    else:
                        minutes = (time.monotonic() - began) / 60
                        print(f"{entry}: done in {minutes:.1f} min ({done} of {total})", flush=True)
                reporter.update(done / total, f"{done}/{total}: {', '.join(running)}")
    finally:
        for _, process, _ in running.values():
            process.terminate()  # saves its state
        for _, process, _ in running.values():
            process.wait()
    return failed


def _started(entry: Entry, folder: Path, restart: bool) -> subprocess.Popen[bytes]:
    settings, log = (folder / "logs" / f"{entry.run}.{kind}" for kind in ("yaml", "log"))
    write_text(settings, yaml.safe_dump(asdict(entry.config), sort_keys=False, allow_unicode=True))
    words = [sys.executable, "-m", "pipeline.comparison.worker", str(settings), entry.run]
    with log.open("ab") as stream:
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
    return {
        "term": entry.term, "rate_target": entry.rate, "seed": entry.seed, "run": entry.run,
        "rate_settled": controller.settled, "beta": controller.beta,
        **{key: interval["mean"] for key, interval in scores.items()},
    }  # fmt: skip


def _conditions(
    config: Config, entries: Sequence[Entry], store: Store, scored: Store
) -> list[tuple[str, str]]:
    """What all runs have in common, as a reader needs to judge or to repeat them."""
    form, config = config.likelihood.form, entries[0].config
    training, likelihood, limit = config.training, config.likelihood, config.evaluation.max_slices
    steps = f", of at most {training.epoch_steps} steps" if training.epoch_steps else ""

    def counted(store: Store, split: str) -> str:
        subjects = store.subjects(split)
        noun = "blocks" if store.plane == "image" else "subjects"
        images = sum(len(entry.slice_indices) for entry in subjects)
        return f"{images} images of {len(subjects)} {noun} of store {store.name}"

    return [
        ("store", f"{store.name}, digest {store.digest[:12]}, images {store.image_shape}"
         + (", SIMULATED people" if store.simulated else "")),
        ("trained on", counted(store, "train")),
        ("scored on", f"{config.evaluation.split}, {counted(scored, config.evaluation.split)}"
         + (f", at most {limit} of each" if limit else "") + "; the last checkpoint's averaged "
         "weights"),
        ("the same for every term", f"{training.epochs} epochs{steps} of batches of "
         f"{training.batch_size}, the first {likelihood.warmup_epochs} epochs under the Gaussian "
         f"term, learning rate {training.learning_rate:g}, levels "
         f"{describe_levels(config.model.levels)}, width {config.model.width}, order, augmentation "
         "and noise by the seed"),
        ("seeds", ", ".join(str(seed) for seed in dict.fromkeys(e.seed for e in entries))),
        ("blur", f"C = {likelihood.constant:g}, kernel {likelihood.kernel_size}², form {form} "
         "where no other is named"),
        ("machine", f"{platform.machine()}, {available_cores()} cores, threads a run: "
         f"{training.threads}, torch {version('torch')}"),
    ]  # fmt: skip


def _markdown(page: dict[str, Any]) -> str:
    parts = [f"# Comparison {page['title']}",
             "\n".join(f"- {key}: {value}" for key, value in page["conditions"])]  # fmt: skip
    for heading, tables in page["rates"]:
        parts += [f"## {heading}", *(table.markdown for table in tables)]
    return "\n\n".join([*parts, *page["notes"]]) + "\n"


@torch.no_grad()
def _figures(
    runs: pd.DataFrame,
    differences: pd.DataFrame,
    made: Sequence[Entry],
    store: Store,
    evaluations: dict[str, Path],
) -> dict[str, Figure]:
    """Scores, differences; and of the first seed at each rate, the same slices and calibration."""
    split = made[0].config.evaluation.split
    where = f"{split} subjects of store {store.name}" + ", SIMULATED people" * store.simulated
    drawn = {"scores.png": figures.scores(runs, f"Scores of {where}")}
    if len(differences):
        title = f"Paired differences, 95% intervals over families, {where}"
        drawn["differences.png"] = figures.differences(differences, title)
    entries = store.subjects(split)
    data = SliceDataset(store, [entries[i] for i in evenly_spread(len(entries), SHOWN_SUBJECTS)])
    middle = [(a + b) // 2 for a, b in zip(data.first[:-1], data.first[1:], strict=True)]
    images = torch.stack([data[int(index)] for index in middle])
    rates = dict.fromkeys(entry.rate for entry in made)
    for rate in rates:
        shown: dict[str, Entry] = {}
        for entry in made:  # seed by seed
            if entry.rate == rate:
                shown.setdefault(entry.term, entry)
        suffix = f"-{rate:g}.png" if len(rates) > 1 else ".png"
        pictures = {}
        for term, entry in shown.items():
            checkpoint = find_checkpoint(run_folder(entry.run) / "checkpoints", "last")
            vae = load_objective(checkpoint, entry.config).vae
            pictures[term.replace(":", "\n")] = vae.decode(vae.encode(images).mean)
        drawn[f"reconstructions{suffix}"] = figures.side_by_side(
            images, pictures, [entry.subject for entry in data.subjects],
            f"Reconstructions at {at_rate(rate)}, the first seed, {where}",
        )  # fmt: skip
        folders = {term: evaluations[entry.run] for term, entry in shown.items()}
        title = f"Calibration at {at_rate(rate)}, the first seed, {where}"
        if figure := figures.calibration(folders, title):
            drawn[f"calibration{suffix}"] = figure
    return drawn


def _track(
    config: Config,
    store: Store,
    scored: Store,
    folder: Path,
    texts: dict[str, str],
    drawn: Sequence[str],
    made: Sequence[Entry],
    runs: pd.DataFrame,
) -> None:
    """One MLflow run for the comparison, with the training runs as its children."""
    memory, title, work = folder / "mlflow_run.txt", folder.name, work_folder()
    earlier = memory.read_text("utf-8").strip() if memory.exists() else None
    name = f"{store.name}, {runs['term'].nunique()} terms compared"
    tags = {"stage": "comparison", "dataset": store.name, "size": str(store.image_shape[-1]),
            "simulated": str(store.simulated).lower(), "store_digest": store.digest,
            **code_version()}  # fmt: skip
    named = name + (f" ({title})" if title != store.name else "")
    with track(config.tracking, work, named, continued=earlier, tags=tags) as parent:
        if parent.run_id is None:
            return
        write_text(memory, f"{parent.run_id}\n")
        if parent.run_id != earlier:
            parent.parameters({"comparison": title})
        parent.tags({"compare.config": json.dumps(asdict(config.compare))})
        warning = f"{SIMULATED}\n\n" if store.simulated else ""
        parent.note("Table", f"{warning}{texts['table.md']}")
        for file, text in texts.items():
            parent.text(text, file)
        for file in drawn:
            parent.file(folder / "figures" / file, "figures")
        for entry, row in zip(made, runs.to_dict("records"), strict=True):
            state = find_checkpoint(run_folder(entry.run) / "checkpoints", "last").state
            name = run_name(entry.config, store.name, entry.run)
            tags = {"stage": "training", **run_tags(entry.config, store, entry.run)}
            continued = state.tracking_run
            with track(config.tracking, work, name, continued=continued, tags=tags) as child:
                child.tags({
                    "mlflow.parentRunId": parent.run_id,
                    "compare.term": entry.term,
                    "compare.rate_settled": str(row["rate_settled"]).lower(),
                })  # fmt: skip
                means = {str(key): value for key, value in row.items() if pd.notna(value)}
                headline = headline_names(means, evaluation_folder(entry.config, scored))
                child.latest({**headline, epoch_name("final_beta"): row["beta"]})
