"""Score a run: a checkpoint in, metrics, tables, figures and an MLflow run out."""

from collections.abc import Iterable
from dataclasses import asdict, replace

import torch

from data_prep import flat_keys
from pipeline.config import Config
from pipeline.data.slices import Store, open_store
from pipeline.distributed import choose_device
from pipeline.errors import InputError
from pipeline.evaluation.record import (
    describe,
    fingerprint,
    read_evaluation,
    write_evaluation,
)
from pipeline.files import run_folder, work_folder
from pipeline.losses.config import RESIDUAL_KEYS
from pipeline.metrics.aggregate import Interval
from pipeline.tracking.runs import track
from pipeline.training.checkpoint import TrainingState, find_checkpoint
from pipeline.training.loop import load_objective
from pipeline.training.prior import prior_of
from pipeline.training.residual import residual_law_of

# Sections whose keys evaluation takes; and what it has in place of a key of another.
HONOURED = ("evaluation.", "tracking.", "prior.", "likelihood.residual")
ELSEWHERE = {
    "training.device": "say evaluation.device",
    "training.threads": "say evaluation.threads",
    "training.batch_size": "say evaluation.batch_size",
    "data.store": "say evaluation.store",
    "prepare.name": "say evaluation.store",
}


def earlier_scores(config: Config, run: str) -> dict[str, Interval] | None:
    """The metrics of a trained run as it is now, as far as they are there; else None."""
    folder, settings = run_folder(run), config.evaluation
    checkpoint = find_checkpoint(folder / "checkpoints", settings.checkpoint)
    store = store_to_score(config)
    inputs = fingerprint(checkpoint, store, config)
    return read_evaluation(folder / _evaluation_folder(config, store), inputs, complete=False)


def store_to_score(config: Config) -> Store:
    """The store of evaluation.store, or the one trained on."""
    return open_store(config.evaluation.store or config.data.store, work_folder())


def _evaluation_folder(config: Config, store: Store) -> str:
    external = config.evaluation.store
    return f"evaluation-{store.path.resolve().name}" if external else "evaluation"


def evaluate_run(config: Config, run: str) -> dict[str, Interval]:
    """Score a run; what was scored before from the same inputs is only shown again.

    `config` is the run's own but for the sections evaluation and tracking. Returns the metrics.
    """
    settings = config.evaluation
    folder = run_folder(run)
    checkpoint = find_checkpoint(folder / "checkpoints", settings.checkpoint)
    objective, state = load_objective(checkpoint, config), checkpoint.state
    store = store_to_score(config)
    elsewhere = _evaluation_folder(config, store)
    inputs = fingerprint(checkpoint, store, config)
    metrics = read_evaluation(folder / elsewhere, inputs)
    if metrics is not None:
        print(f"run {run} is scored already on store {store.name}: nothing to do")
    else:
        from pipeline.evaluation.evaluate import evaluate, people_to_score, training_slices
        from pipeline.evaluation.networks import load_networks

        threads = settings.threads or config.training.threads
        if threads:
            torch.set_num_threads(threads)
        entries = people_to_score(state, store, settings)
        networks = load_networks(settings)
        objective = objective.to(choose_device(settings.device, "evaluation.device"))
        trained = _trained_store(state)
        prior = prior_of(checkpoint, objective.vae, config, trained)
        law = residual_law_of(checkpoint, objective.vae, config, trained)
        name = f"{run} {elsewhere}"
        with track(config.tracking, work_folder(), name, parent=state.tracking_run) as tracker:
            found = evaluate(
                objective, prior, state, store, entries, networks, config,
                training_slices(trained) if trained else None, law,
            )  # fmt: skip
            metrics = found.metrics
            write_evaluation(folder / elsewhere, found, inputs)
            tracker.parameters({"evaluation": asdict(settings), "run": run})
            tracker.dataset(store.name, store.digest, store.path, "evaluation")
            for name, figure in found.figures.items():
                tracker.figure(figure, f"figures/{name}")
            tracker.text((folder / elsewhere / "per_subject.csv").read_text(), "per_subject.csv")
            tracker.text((folder / elsewhere / "metrics.json").read_text(), "metrics.json")
            for key, interval in metrics.items():
                suffixes = {"mean": "", "low": "_low", "high": "_high"}
                values = {key + suffixes[part]: value for part, value in interval.items()}
                tracker.metrics({k: v for k, v in values.items() if v is not None})
            for key, reason in found.absent.items():
                tracker.tag(f"absent.{key}", reason)
    print(describe(metrics))
    print(f"scores, tables and figures: {folder / elsewhere}")
    return metrics


def _trained_store(state: TrainingState) -> Store | None:
    """The store a checkpoint was trained on, where it is still there as it was."""
    try:
        store = open_store(state.config["data"]["store"], work_folder())
    except InputError:
        return None
    return store if store.digest == state.store["digest"] else None


def with_run_config(config: Config, run_config: Config, said: Iterable[str]) -> Config:
    """The configuration to evaluate with: the run's, but for what evaluation takes anew (HONOURED).

    said: dotted keys or sections that were given on the command line. Raises InputError where one
    of another section is to be changed: the run is as it was trained.
    """
    old, new = (dict(flat_keys(asdict(c))) for c in (run_config, config))
    given = tuple(f"{key}." for key in said)
    changed = [key for key in new if f"{key}.".startswith(given) and new[key] != old.get(key)]
    refused = [key for key in changed if not key.startswith(HONOURED)]
    if refused:
        key = refused[0]
        way_out = ELSEWHERE.get(key, "leave it out, or train another run with it")
        raise InputError(
            f"evaluate can't change {key}: the run was trained with {old.get(key)!r}; {way_out}"
        )
    anew = {key: getattr(config.likelihood, key) for key in RESIDUAL_KEYS}
    return replace(
        run_config,
        evaluation=config.evaluation,
        tracking=config.tracking,
        prior=config.prior,
        likelihood=replace(run_config.likelihood, **anew),
    )
