"""The comparison stage: trains and scores what is missing, then writes the leaderboard."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from matplotlib.figure import Figure

from data_prep import available_cores, code_version, run_option
from pipeline.commands.train import check_unchanged
from pipeline.comparison.figures import perception_distortion, rate_distortion, side_by_side
from pipeline.comparison.leaderboard import (
    Result,
    Row,
    at_rate,
    markdown,
    rows_of,
    runs_csv,
    summary_csv,
)
from pipeline.comparison.page import PAGE, Page, write_page
from pipeline.comparison.plan import Entry, jobs_at_once, plan
from pipeline.comparison.workers import run_entries
from pipeline.config import Config
from pipeline.data.slices import SliceDataset, Store, evenly_spread, open_store
from pipeline.errors import InputError
from pipeline.evaluation.networks import load_networks
from pipeline.evaluation.record import earlier_scores, evaluation_folder, store_to_score
from pipeline.evaluation.scores import headline_names
from pipeline.figures import write_figure
from pipeline.files import locked, run_folder, work_folder, write_text
from pipeline.models.config import describe_levels
from pipeline.tracking.names import epoch_name
from pipeline.tracking.runs import NoTracker, track
from pipeline.training.checkpoint import find_checkpoint, latest_checkpoint
from pipeline.training.description import SIMULATED, run_name, run_tags
from pipeline.training.loop import load_objective
from pipeline.training.rate import RateController

SHOWN_SUBJECTS = 6
# The scores of the figures, and the axes' labels.
PERCEPTUAL = {"lpips_alex": "LPIPS alex", "lpips_vgg": "LPIPS vgg", "kid_vgg16": "KID vgg16"}


def compare(config: Config, name: str, restart: bool = False) -> Path:
    """Train and score every term × rate × seed that is not done yet; returns the folder of results.

    WORK/comparisons/NAME/ then holds report.html, leaderboard.md, leaderboard.csv, runs.csv,
    figures/ and logs/; the runs are WORK/runs/NAME-TERM-rRATE-sSEED. Runs that were interrupted go
    on; ones that fail are named in the leaderboard.

    Raises:
        InputError: terms can't be built, runs of these names were made with another configuration
            (unless `restart`), or a run failed.
    """
    run_folder(name)  # refuses names that are no plain folder names
    work = work_folder()
    store, scored = open_store(config.data.store, work), store_to_score(config)
    if not scored.subjects(config.evaluation.split):
        raise InputError(f"store {scored.name} has no subjects in split {config.evaluation.split}")
    entries, absent = plan(config, name, store.image_shape)
    title = f"{name}-quick" if config.compare.quick else name
    folder = work / "comparisons" / title
    busy = f"another process is working on {folder}: wait for it, or choose a new {run_option()}…"
    with locked(folder / ".lock", busy):
        todo = [entry for entry in entries if restart or not _finished(entry, store)]
        jobs = jobs_at_once(config)
        for row, reason in absent.items():
            print(f"{row} is left out: {reason}")
        if todo:
            load_networks(config.evaluation)  # fails now, not after hours
            print(
                f"comparison {title}: {len(todo)} of {len(entries)} runs to do, {jobs} at once; "
                f"logs: {folder / 'logs'}",
                flush=True,
            )
        failed = run_entries(todo, jobs, folder, done=len(entries) - len(todo), restart=restart)
        made = [entry for entry in entries if entry.run not in failed]
        first = next(iter(failed.items()), None)
        if not made:
            raise InputError(
                f"no run of {title} was completed; the first: {': '.join(first or ('none',))}"
            )
        results = [_result(entry, store) for entry in made]
        rows = rows_of(results)
        missing = [*absent.items(), *((f"run {run}", why) for run, why in failed.items())]
        conditions = _conditions(config, entries, store, scored)
        board = markdown(results, f"Comparison {title}", conditions, missing)
        figures = _figures(rows, made, scored)
        tables = {"leaderboard.csv": summary_csv(results), "runs.csv": runs_csv(results),
                  "leaderboard.md": board}  # fmt: skip
        for file, figure in figures.items():
            write_figure(folder / "figures" / file, figure)
        for file, text in tables.items():
            write_text(folder / file, text)
        page = Page(title, results, conditions, missing, list(figures), folder, scored.simulated)
        tables[PAGE] = write_page(page)
        _track(config, store, scored, title, folder, tables, figures, made, results)
        print(board)
        print(f"report: {folder / PAGE}")
        if first:
            raise InputError(
                f"{len(failed)} of {len(entries)} runs failed and are not in the leaderboard; the "
                f"first: {': '.join(first)}"
            )
    return folder


def _finished(entry: Entry, store: Store) -> bool:
    """Whether a run is trained and scored. Raises InputError where it was made otherwise."""
    folder = run_folder(entry.run)
    try:
        found = latest_checkpoint(folder / "checkpoints")
        if found is None:
            return False
        check_unchanged(found.state, entry.config, store, entry.run)
    except InputError as error:
        raise InputError(
            f"{error}; or remove {folder}, and the same command makes it anew"
        ) from error
    return found.state.finished and earlier_scores(entry.config, entry.run) is not None


def _result(entry: Entry, store: Store) -> Result:
    scores = earlier_scores(entry.config, entry.run)
    if scores is None:
        raise InputError(f"run {entry.run} has lost its scores: give the same command again")
    state = find_checkpoint(run_folder(entry.run) / "checkpoints", "last").state
    controller = RateController(**state.controller)
    return Result(
        entry.row,
        entry.rate,
        entry.seed,
        {key: interval["mean"] for key, interval in scores.items()},
        controller.beta,
        controller.settled,
    )


def _counted(store: Store, split: str) -> str:
    entries = store.subjects(split)
    noun = "blocks" if store.plane == "image" else "subjects"
    images = sum(len(entry.slice_indices) for entry in entries)
    return f"{images} images of {len(entries)} {noun} of store {store.name}"


def _conditions(
    config: Config, entries: Sequence[Entry], store: Store, scored: Store
) -> list[tuple[str, str]]:
    """What all runs have in common, as a reader needs to judge or to repeat them."""
    form, config = config.likelihood.form, entries[0].config
    training, likelihood, model = config.training, config.likelihood, config.model
    steps = f", of at most {training.epoch_steps} steps" if training.epoch_steps else ""
    limit = config.evaluation.max_slices
    return [
        ("store", f"{store.name}, digest {store.digest[:12]}, images {store.image_shape}"
         + (", SIMULATED people" if store.simulated else "")),
        ("trained on", _counted(store, "train")),
        ("scored on", f"{config.evaluation.split}, {_counted(scored, config.evaluation.split)}"
         + (f", at most {limit} of each" if limit else "") + "; the last checkpoint's averaged "
         "weights"),
        ("the same for every term", f"{training.epochs} epochs{steps} of batches of "
         f"{training.batch_size}, the first {likelihood.warmup_epochs} epochs under the Gaussian "
         f"term, learning rate {training.learning_rate:g}, levels "
         f"{describe_levels(model.levels)}, width {model.width}, order, augmentation and noise "
         "by the seed"),
        ("seeds", ", ".join(str(seed) for seed in dict.fromkeys(e.seed for e in entries))),
        ("blur", f"C = {likelihood.constant:g}, kernel {likelihood.kernel_size}², form {form} "
         "where no other is named"),
        ("machine", f"{platform.machine()}, {available_cores()} cores, threads a run: "
         f"{training.threads}, torch {version('torch')}"),
    ]  # fmt: skip


@torch.no_grad()
def _figures(rows: Sequence[Row], made: Sequence[Entry], store: Store) -> dict[str, Figure]:
    """For each rate the same slices under every term, and plots of scores against each other."""
    config = made[0].config
    entries = store.subjects(config.evaluation.split)
    chosen = evenly_spread(len(entries), SHOWN_SUBJECTS)
    data = SliceDataset(store, [entries[number] for number in chosen])
    middle = [(a + b) // 2 for a, b in zip(data.first[:-1], data.first[1:], strict=True)]
    images = torch.stack([data[int(index)] for index in middle])
    subjects = [entry.subject for entry in data.subjects]
    simulated = ", SIMULATED people" if store.simulated else ""
    targets = list(dict.fromkeys(row.results[0].rate_target for row in rows))
    figures: dict[str, Figure] = {}
    for target in targets:
        group = [row for row in rows if row.results[0].rate_target == target]
        group.sort(key=lambda row: row.mean("lpips_alex"))
        shown = {}
        for row in group:
            seed = row.results[0].seed
            entry = next(e for e in made if (e.row, e.rate, e.seed) == (row.name, target, seed))
            checkpoint = find_checkpoint(run_folder(entry.run) / "checkpoints", "last")
            vae = load_objective(checkpoint, entry.config).vae
            score = f"\nLPIPS {row.mean('lpips_alex'):.3f}" if row.values("lpips_alex") else ""
            shown[row.name.replace(":", "\n") + score] = vae.decode(vae.encode(images).mean)
        suffix = f"-{target:g}" if len(targets) > 1 else ""
        figures[f"reconstructions{suffix}.png"] = side_by_side(
            images, shown, subjects,
            f"Reconstructions of {config.evaluation.split} images at {at_rate(target)}, "
            f"the first seed{simulated}",
        )  # fmt: skip
        for key, label in PERCEPTUAL.items():
            if all(row.values(key) for row in group):
                figures[f"psnr_{key}{suffix}.png"] = perception_distortion(
                    group, key, label, f"Fidelity and perception at {at_rate(target)}{simulated}"
                )
    keys = {"psnr": "PSNR (dB), higher is better"} | {
        key: f"{label}, lower is better"
        for key, label in PERCEPTUAL.items()
        if all(row.values(key) for row in rows)
    }
    figures["rate_distortion.png"] = rate_distortion(
        rows, keys, f"Scores against the rate spent{simulated}"
    )
    return figures


def _track(
    config: Config,
    store: Store,
    scored: Store,
    title: str,
    folder: Path,
    tables: dict[str, str],
    figures: dict[str, Figure],
    made: Sequence[Entry],
    results: Sequence[Result],
) -> None:
    """One MLflow run for the comparison, with the training runs as its children."""
    memory = folder / "mlflow_run.txt"
    earlier = memory.read_text("utf-8").strip() if memory.exists() else None
    work = work_folder()
    terms = len(dict.fromkeys(result.row for result in results))
    name = f"{store.name}, {terms} terms compared" + (f" ({title})" if title != store.name else "")
    tags = {"stage": "comparison", "dataset": store.name, "size": str(store.image_shape[-1]),
            "simulated": str(store.simulated).lower(), "store_digest": store.digest,
            **code_version()}  # fmt: skip
    with track(config.tracking, work, name, continued=earlier, tags=tags) as parent:
        if parent.run_id is None:
            return
        write_text(memory, f"{parent.run_id}\n")
        if parent.run_id != earlier:
            parent.parameters({"comparison": title})
        parent.tags({"compare.config": json.dumps(asdict(config.compare))})
        warning = f"{SIMULATED}\n\n" if store.simulated else ""
        parent.note("Leaderboard", f"{warning}{tables['leaderboard.md']}")
        for file, text in tables.items():
            parent.text(text, file)
        for file in figures:
            parent.file(folder / "figures" / file, "figures")
        for entry, result in zip(made, results, strict=True):
            state = find_checkpoint(run_folder(entry.run) / "checkpoints", "last").state
            name = run_name(entry.config, store.name, entry.run)
            tags = {"stage": "training", **run_tags(entry.config, store, entry.run)}
            with track(
                config.tracking, work, name, continued=state.tracking_run, tags=tags
            ) as child:
                _adopt(child, parent.run_id, entry, result, scored)


def _adopt(child: NoTracker, parent: str, entry: Entry, result: Result, scored: Store) -> None:
    """Put a training run below the comparison, its headline scores beside its curves."""
    child.tags({
        "mlflow.parentRunId": parent,
        "compare.term": result.row,
        "compare.rate_settled": str(result.settled).lower(),
    })  # fmt: skip
    child.latest({
        **headline_names(result.scores, evaluation_folder(entry.config, scored)),
        epoch_name("final_beta"): result.beta,
    })  # fmt: skip
