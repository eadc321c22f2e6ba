"""The stage: a run's checkpoint and a store in, scores, tables, figures and an MLflow run out."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from data_prep.common.progress import Reporter
from data_prep.common.tracking import Tracker, flat_keys
from data_prep.common.wording import command
from pipeline.blur.kernel_loss import kernel_width
from pipeline.config import Config, load_config
from pipeline.data.other_people import FILES_CHECKED
from pipeline.data.slices import SliceDataset, Store, SubjectEntry, evenly_spread
from pipeline.errors import InputError
from pipeline.evaluation import calibration, figures, scores
from pipeline.evaluation.memorisation import KEYS, memorisation
from pipeline.evaluation.networks import Networks, load_networks
from pipeline.evaluation.pairs import Tally, floor_of, mean_of
from pipeline.evaluation.record import (
    REPORT,
    evaluation_folder,
    fingerprint,
    read_evaluation,
    store_to_score,
)
from pipeline.evaluation.report import Evaluation, about_run, write_evaluation
from pipeline.evaluation.samples import PriorSamples, coarse, sample_scores
from pipeline.evaluation.trained_run import (
    TrainedRun,
    load_trained_run,
    of_role,
    subjects_to_score,
)
from pipeline.files import locked_run, run_folder, work_folder
from pipeline.losses.residual import ResidualLaw
from pipeline.metrics import sharpness
from pipeline.metrics.statistics import Interval, interval, single
from pipeline.models.vae import Inference
from pipeline.tracking.runs import score_name, track
from pipeline.training.checkpoint import find_checkpoint
from pipeline.training.description import SIMULATED, run_name, run_tags
from pipeline.training.objective import Objective

# Sections, or beginnings of keys, that evaluation takes anew; and its own key in place of another.
HONOURED = ("evaluation.", "tracking.")
ELSEWHERE = {
    "training.device": "use evaluation.device",
    "training.threads": "use evaluation.threads",
    "training.batch_size": "use evaluation.batch_size",
    "data.store": "use evaluation.store",
    "prepare.name": "use evaluation.store",
}
# Slices of the data beside the prior's samples.
SHOWN_SLICES = 24
NO_STORE = "the store it was trained on is not here"
CHOSEN_BY = "these subjects chose the checkpoint: their scores are not those of unseen subjects"
LOOK = """\
- *Artifacts*, `figures`: reconstructions with error maps, samples, kernels, spectra, calibration
- `scores.json`: every metric with its 95% interval; `per_subject.csv`: every subject's"""


def evaluate_run(config: Config, run: str) -> dict[str, Interval]:
    """Score a run; what was scored before from the same inputs is only shown again.

    Args:
        config: the run's own but for what evaluation takes anew, see `with_run_config`.
        run: its name.
    """
    with locked_run(run):
        return _evaluate_run(config, run)


def _evaluate_run(config: Config, run: str) -> dict[str, Interval]:
    settings = config.evaluation
    checkpoint = find_checkpoint(run_folder(run) / "checkpoints", settings.checkpoint)
    state, store = checkpoint.state, store_to_score(config)
    entries = subjects_to_score(state, store, settings)
    chose = of_role(entries, state, "validation", settings.other_people)
    seen = CHOSEN_BY if chose else ""
    folder = run_folder(run) / evaluation_folder(config, store)
    inputs = fingerprint(checkpoint, store, config)
    metrics = read_evaluation(folder, inputs)
    if metrics is not None:
        print(f"run {run} is scored already on store {store.name}: nothing to do")
    else:
        if threads := settings.threads or config.training.threads:
            torch.set_num_threads(threads)
        if settings.other_people:
            print(f"evaluation.other_people: {FILES_CHECKED}")
        networks = load_networks(settings)
        trained = load_trained_run(checkpoint, config, entries)
        name = f"{run_name(config, state.store['name'], run)}: {settings.split}"
        name += f" of {store.name}" if settings.store else ""
        tags = run_tags(config, store, run) | {"stage": "evaluation", "split": settings.split}
        with track(
            config.tracking,
            work_folder(),
            name,
            parent=state.tracking_run,
            tags=tags,
            machine=True,
        ) as tracker:
            evaluation = evaluate(trained, store, entries, networks)
            metrics = evaluation.metrics
            kept = load_config(run_folder(run) / "config.yaml")
            about = about_run(config, kept, run, store, state.epoch, seen)
            write_evaluation(folder, evaluation, inputs, about)
            tracker.parameters({"evaluation": asdict(settings), "run": run})
            log_evaluation(tracker, evaluation, folder, store, config, seen)
    print(scores.table(metrics))
    if seen:
        print(f"note: {seen}")
    print(f"report:         {folder / REPORT}")
    if config.tracking.enabled:
        print(f"all runs:       {command('ui')}")
    print(f"for your code:  {command('export', run)}")
    return metrics


@torch.no_grad()
def evaluate(
    run: TrainedRun, store: Store, entries: list[SubjectEntry], networks: Networks
) -> Evaluation:
    """Score a trained run on some subjects of a store.

    Args:
        run: from `load_trained_run`.
        store: holds the subjects' slices.
        entries: whom to score, from `subjects_to_score`.
        networks: from `load_networks`.
    """
    settings, objective = run.config.evaluation, run.objective
    generator = torch.Generator(run.device).manual_seed(settings.seed)
    # Of its own, so that the other metrics do not depend on what calibration draws.
    draws = torch.Generator(run.device).manual_seed(settings.seed)
    data, tally = SliceDataset(store, entries), Tally(networks, store.image_set)
    samples = PriorSamples(decode_prior(run, generator))
    mean = None if run.training is None else run.training.images.mean(0).to(run.device)
    averaged: list[Tensor] = []
    curves: dict[str, list[calibration.Curves]] = {}
    with Reporter() as reporter:
        for batch in samples.images.split(settings.batch_size):
            tally.compare("sample", batch.to(run.device))
        done, total = 0, sum(len(_places(entry, settings.max_slices)) for entry in entries)
        for number, entry in enumerate(entries):
            images = data.of_subject(number, settings.max_slices)
            parts, reconstructions, spreads = [], [], []
            for batch in images.split(settings.batch_size):
                batch = batch.to(run.device)
                middle = objective.vae.infer(batch)
                own = model_scores(objective, batch, middle, generator, run.fitted)
                parts.append(tally.slice_scores(batch, middle.reconstruction) | own)
                reconstructions.append(middle.reconstruction.cpu())
                spreads.append(
                    calibration.expected_spread(objective, batch, middle, draws, run.fitted)
                )
                done += len(batch)
                reporter.update(done / total, f"subject {number + 1}/{len(entries)}")
            calibrated, of_laws = calibration.of_subject(images, spreads)
            row = tally.add(
                {"subject": entry.subject, "family": entry.family, "split": entry.split},
                mean_of(parts) | calibrated,
                images,
                torch.cat(reconstructions),
                _places(entry, settings.max_slices),
            )
            row |= samples.beside(images, tally.powers[-1][0])
            if mean is not None:
                row |= floor_of(images.to(run.device), mean, networks)
            averaged.append(coarse(images))
            for law, curve in of_laws.items():
                curves.setdefault(law, []).append(curve)
        reporter.update(1.0, "nearest slices of samples")
        copies, uncompared = memorised(run, samples.images, store.plane)
    metrics = tally.metrics(settings.seed)
    metrics["sample_blur_effect"] = interval(sharpness.blur_effect(samples.images).numpy())
    metrics |= copies | sample_scores(
        coarse(samples.images),
        torch.cat(averaged),
        None if run.training is None else coarse(run.training.images),
        networks.distances.get("lpips_vgg"),
        run.device,
        settings.seed,
    )
    if run.fitted is not None:
        metrics["calibration_families"] = single(run.families)
    names = {"term": run.config.likelihood.term, calibration.FITTED: "fitted law"}
    laws = {names[law]: calibration.mean_curves(of_law) for law, of_law in curves.items()}
    data_slices = data.__getitems__(evenly_spread(len(data), SHOWN_SLICES))
    count = min(len(data_slices), len(samples.images))
    return Evaluation(
        metrics,
        tally.rows,
        figures.run_figures(run, store, tally, samples, data_slices, laws),
        networks.absent | uncompared | absent_metrics(run),
        [tally.shown[n] for n in evenly_spread(len(tally.shown), figures.SHOWN_SUBJECTS)],
        tally.best,
        tally.worst,
        samples.images[:count],
        data_slices[:count],
        run.latents,
        laws or None,
    )


def decode_prior(run: TrainedRun, generator: torch.Generator) -> Tensor:
    """Images decoded from draws of the prior, on the CPU: (evaluation.samples,C,H,W)."""
    settings, vae = run.config.evaluation, run.objective.vae
    drawn = vae.prior_latents if run.prior is None else run.prior.sample
    latents = drawn(settings.samples, generator)
    return torch.cat([vae.decode(z) for z in latents.split(settings.batch_size)]).cpu()


def memorised(
    run: TrainedRun, samples: Tensor, plane: str
) -> tuple[dict[str, Interval], dict[str, str]]:
    """Scores of whether samples are copies; or why there are none, by metric."""
    if run.training is None or run.held_out is None:
        return {}, dict.fromkeys(KEYS, NO_STORE)
    if min(run.training.count, run.held_out.count) < 2:
        return {}, dict.fromkeys(KEYS, "they need two families trained on and two held out")
    data, seed = run.config.data, run.config.evaluation.seed
    flip = data.flip and plane != "sagittal"
    return memorisation(samples, run.training, run.held_out, data.augmentation, flip, seed), {}


def model_scores(
    objective: Objective,
    images: Tensor,
    middle: Inference,
    generator: torch.Generator,
    fitted: ResidualLaw | None = None,
) -> dict[str, Tensor]:
    """A model's own scores (B,) of images (B,C,H,W); middle: what `VAE.infer` gives for them.

    rate: nats.
    kernel_width: pixels, the kernel network's at the posterior's mean; absent without one.
    elbo_bits_per_dim: of one draw, under the term with the σ of training; absent where the term is
        no density.
    elbo_bits_per_dim_fitted: the same under `fitted`, the law of residuals; its floor counts.

    Bits per dimension are those of a density over intensities in [0,1]: add 8 to compare with
    images of 256 levels. They are under the prior N(0,I), whatever samples are drawn from.
    """
    # A term that was not trained under yet has no value: the rate is the same without it.
    warm_up = not objective.term.has_scale
    parts = objective.elbo(images, generator, warm_up=warm_up, features=middle.features)
    found = {"rate": parts.rate}
    if (kernel := objective.kernel(middle.latent)) is not None:
        found["kernel_width"] = kernel_width(kernel)
    bits = images[0].numel() * math.log(2)
    if objective.term.density and not warm_up:
        found["elbo_bits_per_dim"] = -parts.elbo / bits
    if fitted is not None:
        nll = fitted(parts.reconstruction).nll(images - parts.reconstruction)
        found["elbo_bits_per_dim_fitted"] = (nll + parts.rate) / bits
    return found


def absent_metrics(run: TrainedRun) -> dict[str, str]:
    """The metrics that this run can't have, whatever weights are there, each with the reason."""
    objective, term = run.objective, run.config.likelihood.term
    absent = calibration.missing(objective, term, run.lawless)
    if run.training is None:
        floors = ("floor_psnr", "floor_ssim", "floor_lpips_alex", "floor_lpips_vgg")
        absent |= dict.fromkeys((*floors, "training_kid_coarse"), NO_STORE)
    if not objective.term.density:
        absent["elbo_bits_per_dim"] = f"{term} is not a density"
    elif not objective.term.has_scale:
        absent["elbo_bits_per_dim"] = f"{term} has not been trained under yet"
    if run.lawless:
        absent["elbo_bits_per_dim_fitted"] = run.lawless
    if objective.kernel_network is None:
        absent["kernel_width"] = f"{term} has no kernel network"
    return absent


def _places(entry: SubjectEntry, limit: int) -> list[int]:
    """The numbers in their volume of the slices that `SliceDataset.of_subject` gives."""
    indices = entry.slice_indices
    return [indices[number] for number in evenly_spread(len(indices), limit or len(indices))]


def log_evaluation(
    tracker: Tracker,
    evaluation: Evaluation,
    folder: Path,
    store: Store,
    config: Config,
    seen: str = "",
) -> None:
    """Log an evaluation to its own run, and its headline to the training run that it is of."""
    split, metrics, absent = config.evaluation.split, evaluation.metrics, evaluation.absent
    if config.evaluation.other_people:
        tracker.tags({"other_people": FILES_CHECKED})
    if scores.below_floor(metrics):
        tracker.tags({"learned": "nothing: reconstructions are no better than the mean slice"})
    tracker.dataset(store.name, store.digest, store.path, "evaluation")
    for name in evaluation.figures:
        tracker.file(folder / "figures" / name, "figures")
    for name in ("per_subject.csv", "metrics.json", REPORT):
        tracker.text((folder / name).read_text("utf-8"), name)
    means = {key: found["mean"] for key, found in metrics.items()}
    tracker.metrics(
        {score_name(key, split): mean for key, mean in means.items() if mean is not None}
    )
    tracker.table(scores.columns(metrics, split), "scores.json")
    if absent:
        tracker.text(json.dumps(absent, indent=1, sort_keys=True), "absent.json")
    note, trained = scores.note(metrics, absent), tracker.parent
    note += f"\n\n{seen}." if seen else ""
    warning = f"{SIMULATED}\n\n" if store.simulated else ""
    tracker.note(f"{note}\n\n{warning}{LOOK}")
    trained.metrics(scores.headline_names(means, folder.name))
    trained.tags({f"{folder.name}_run": str(tracker.run_id)})


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
