"""Score a run: a checkpoint in, metrics, tables, figures and an MLflow run out."""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from data_prep import command, flat_keys
from pipeline.config import Config
from pipeline.data.other_people import FILES_CHECKED
from pipeline.data.slices import Store, open_store
from pipeline.errors import InputError
from pipeline.evaluation.description import (
    LOOK,
    SCORES,
    evaluation_name,
    headline_names,
    score_names,
    scores_columns,
    scores_note,
)
from pipeline.evaluation.record import (
    Evaluation,
    evaluation_folder,
    fingerprint,
    read_evaluation,
    write_evaluation,
)
from pipeline.evaluation.report import REPORT
from pipeline.evaluation.scores import table
from pipeline.files import locked_run, run_folder, work_folder
from pipeline.metrics.statistics import Interval
from pipeline.parsing import load_config
from pipeline.tracking.runs import NoTracker, track
from pipeline.training.checkpoint import find_checkpoint
from pipeline.training.description import SIMULATED, run_tags

# Sections, or beginnings of keys, that evaluation takes anew; and its own key in place of another.
HONOURED = ("evaluation.", "tracking.")
ELSEWHERE = {
    "training.device": "use evaluation.device",
    "training.threads": "use evaluation.threads",
    "training.batch_size": "use evaluation.batch_size",
    "data.store": "use evaluation.store",
    "prepare.name": "use evaluation.store",
}


def earlier_scores(config: Config, run: str) -> dict[str, Interval] | None:
    """The metrics of a trained run as it is now, as far as they are there; else None."""
    folder, settings = run_folder(run), config.evaluation
    checkpoint = find_checkpoint(folder / "checkpoints", settings.checkpoint)
    store = store_to_score(config)
    inputs = fingerprint(checkpoint, store, config)
    return read_evaluation(folder / evaluation_folder(config, store), inputs, complete=False)


def store_to_score(config: Config) -> Store:
    """The store of evaluation.store, or the one trained on."""
    return open_store(config.evaluation.store or config.data.store, work_folder())


def evaluate_run(config: Config, run: str) -> dict[str, Interval]:
    """Score a run; what was scored before from the same inputs is only shown again.

    Args:
        config: the run's own but for what evaluation takes anew, see `with_run_config`.
        run: its name.

    Returns:
        The metrics.
    """
    with locked_run(run):
        return _evaluated(config, run)


def _evaluated(config: Config, run: str) -> dict[str, Interval]:
    settings = config.evaluation
    checkpoint = find_checkpoint(run_folder(run) / "checkpoints", settings.checkpoint)
    store = store_to_score(config)
    folder = run_folder(run) / evaluation_folder(config, store)
    inputs = fingerprint(checkpoint, store, config)
    metrics = read_evaluation(folder, inputs)
    # Of a run that was scored before there were reports, one is made now.
    if metrics is not None and (folder / REPORT).is_file():
        print(f"run {run} is scored already on store {store.name}: nothing to do")
    else:
        from pipeline.evaluation.evaluate import evaluate
        from pipeline.evaluation.networks import load_networks
        from pipeline.evaluation.report.about import about_run
        from pipeline.evaluation.trained_run import load_trained_run, subjects_to_score

        if threads := settings.threads or config.training.threads:
            torch.set_num_threads(threads)
        entries = subjects_to_score(checkpoint.state, store, settings)
        if settings.other_people:
            print(f"evaluation.other_people: {FILES_CHECKED}")
        networks = load_networks(settings)
        trained = load_trained_run(checkpoint, config, entries)
        name = evaluation_name(config, store, run, checkpoint.state.store["name"])
        parent = checkpoint.state.tracking_run
        tags = run_tags(config, store, run) | {"stage": "evaluation", "split": settings.split}
        with track(
            config.tracking, work_folder(), name, parent=parent, tags=tags, machine=True
        ) as tracker:
            found = evaluate(trained, store, entries, networks)
            metrics = found.metrics
            kept = load_config(run_folder(run) / "config.yaml")
            about = about_run(config, kept, run, store, checkpoint.state.epoch)
            write_evaluation(folder, found, inputs, about)
            if settings.other_people:
                tracker.tags({"other_people": FILES_CHECKED})
            tracker.parameters({"evaluation": asdict(settings), "run": run})
            tracker.dataset(store.name, store.digest, store.path, "evaluation")
            _track_results(tracker, found, folder, store, settings.split)
    print(table(metrics))
    print("\n".join(where_next(folder, run, config)))
    return metrics


def where_next(folder: Path, run: str, config: Config) -> list[str]:
    """Where to look after an evaluation, a line each."""
    browse = [f"all runs:       {command('ui')}"] if config.tracking.enabled else []
    return [
        f"report:         {folder / REPORT}",
        *browse,
        f"for your code:  {command('export', run)}",
    ]


def _track_results(
    tracker: NoTracker, found: Evaluation, folder: Path, store: Store, split: str
) -> None:
    """Log an evaluation to its own run, and its headline to the training run that it is of."""
    for name in found.figures:
        tracker.file(folder / "figures" / name, "figures")
    for name in ("per_subject.csv", "metrics.json", REPORT):
        tracker.text((folder / name).read_text("utf-8"), name)
    means = {key: interval["mean"] for key, interval in found.metrics.items()}
    tracker.metrics(score_names(means, split))
    tracker.table(scores_columns(found.metrics, split), "scores.json")
    if found.absent:
        tracker.text(json.dumps(found.absent, indent=1, sort_keys=True), "absent.json")
    note, trained = scores_note(found.metrics, found.absent), tracker.parent
    warning = f"{SIMULATED}\n\n" if store.simulated else ""
    of_run = f"Of [this training run]({trained.link()}).\n\n" if trained.run_id else ""
    tracker.note(SCORES, f"{note}\n\n{warning}{of_run}{LOOK}")
    if trained.run_id is None or tracker.run_id is None:
        return
    trained.latest(headline_names(means, folder.name))
    trained.tags({f"{folder.name}_run": tracker.run_id})
    trained.note(
        f"{SCORES}: {split} of {store.name}",
        f"{note}\n\nThe rest: [the evaluation]({tracker.link()}).",
        first=True,
    )


def with_run_config(config: Config, run_config: Config, given: Iterable[str]) -> Config:
    """The configuration to evaluate with: the run's, but for what evaluation takes anew (HONOURED).

    Args:
        config: what the command line asks for.
        run_config: what the run was trained with.
        given: dotted keys or sections that the command line gives.

    Raises:
        InputError: a key of another section is to be changed: the run is as it was trained.
    """
    old, new = (dict(flat_keys(asdict(c))) for c in (run_config, config))
    prefixes = tuple(f"{key}." for key in given)
    changed = [key for key in new if f"{key}.".startswith(prefixes) and new[key] != old.get(key)]
    refused = [key for key in changed if not key.startswith(HONOURED)]
    if refused:
        key = refused[0]
        way_out = ELSEWHERE.get(key, "leave it out, or train another run with it")
        raise InputError(
            f"evaluate can't change {key}: the run was trained with {old.get(key)!r}; {way_out}"
        )
    return replace(run_config, evaluation=config.evaluation, tracking=config.tracking)
