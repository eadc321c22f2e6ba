"""The stage: a run's checkpoint and a store in, scores, tables, figures and an MLflow run out."""

import math
from collections.abc import Iterable
from dataclasses import asdict, replace

import torch
from torch import Tensor

from data_prep.common.progress import Reporter
from data_prep.common.tracking import flat_keys
from data_prep.common.wording import command
from pipeline.blur.kernel_loss import kernel_width
from pipeline.config import Config, load_config
from pipeline.data.slices import (
    FILES_CHECKED,
    SliceDataset,
    Store,
    SubjectEntry,
    evenly_spread,
)
from pipeline.errors import InputError
from pipeline.evaluation import calibration, figures, report
from pipeline.evaluation.run import (
    REPORT,
    TrainedRun,
    evaluation_folder,
    fingerprint,
    load_trained_run,
    of_role,
    read_evaluation,
    store_to_score,
    subjects_to_score,
)
from pipeline.evaluation.samples import PriorSamples, coarse, memorisation, sample_scores
from pipeline.evaluation.scoring import Networks, Scored, Tally, floor_of, load_networks
from pipeline.files import locked_run, run_folder, work_folder
from pipeline.losses.residual import ResidualLaw
from pipeline.metrics import sharpness
from pipeline.metrics.catalogue import MEMORISATION
from pipeline.metrics.statistics import Interval, interval, single
from pipeline.models.vae import Inference
from pipeline.tracking.runs import track
from pipeline.training.checkpoint import find_checkpoint
from pipeline.training.description import run_name, run_tags
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


def evaluate_run(config: Config, run: str) -> dict[str, Interval]:
    """Score a run; what was scored before from the same inputs is only shown again.

    Args:
        config: the run's own but for what evaluation takes anew, see `with_run_config`.
        run: its name.
    """
    settings, own = config.evaluation, run_folder(run)
    with locked_run(run):
        checkpoint = find_checkpoint(own / "checkpoints", settings.checkpoint)
        state, store = checkpoint.state, store_to_score(config)
        entries = subjects_to_score(state, store, settings)
        chose = of_role(entries, state, "validation", settings.other_people)
        seen = CHOSEN_BY if chose else ""
        folder = own / evaluation_folder(config, store)
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
            parent = state.tracking_run
            with track(
                config.tracking, work_folder(), name, parent=parent, tags=tags, machine=True
            ) as tracker:
                evaluation = evaluate(trained, store, entries, networks)
                metrics = evaluation.metrics
                kept = load_config(own / "config.yaml")
                about = report.about_run(config, kept, run, store, state.epoch, seen)
                report.write_evaluation(folder, evaluation, inputs, about)
                tracker.parameters({"evaluation": asdict(settings), "run": run})
                report.log_evaluation(tracker, evaluation, folder, store, config, seen)
    print(report.table(metrics))
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
) -> report.Evaluation:
    """Score a trained run on some subjects of a store.

    Args:
        run: from `load_trained_run`.
        store: holds the subjects' slices.
        entries: whom to score, from `subjects_to_score`.
        networks: from `load_networks`.
    """
    settings, device, training = run.config.evaluation, run.device, run.training
    # Calibration draws by its own, so that the other metrics do not depend on it.
    generator, draws = (torch.Generator(device).manual_seed(settings.seed) for _ in range(2))
    data, tally = SliceDataset(store, entries), Tally(networks, store.image_set)
    samples = PriorSamples(decode_prior(run, generator))
    mean = None if training is None else training.images.mean(0).to(device)
    averaged: list[Tensor] = []
    curves: dict[str, list[calibration.Curves]] = {}
    with Reporter() as reporter:
        for batch in samples.images.split(settings.batch_size):
            tally.add_samples(batch.to(device))
        for number, entry in enumerate(entries):
            images = data.of_subject(number, settings.max_slices)
            places = evenly_spread(len(entry.slice_indices), len(images))
            scored = Scored.joined(
                [
                    score_batch(run, tally, batch.to(device), generator, draws)
                    for batch in images.split(settings.batch_size)
                ]
            )
            labels = {"subject": entry.subject, "family": entry.family, "split": entry.split}
            row = tally.add(labels, scored, [entry.slice_indices[place] for place in places])
            residual = images - scored.reconstructions
            calibrated, of_laws = calibration.of_subject(images, residual, scored.spreads)
            row |= calibrated | samples.beside(images, tally.powers[-1][0])
            if mean is not None:
                row |= floor_of(images.to(device), mean, networks)
            averaged.append(coarse(images))
            for law, curve in of_laws.items():
                curves.setdefault(law, []).append(curve)
            reporter.update((number + 1) / len(entries), f"subject {number + 1}/{len(entries)}")
        reporter.update(1.0, "nearest slices of samples")
        copies, uncompared = memorised(run, samples.images, store.plane)
    metrics = tally.metrics(settings.seed) | copies
    metrics["sample_blur_effect"] = interval(sharpness.blur_effect(samples.images).numpy())
    metrics |= sample_scores(
        coarse(samples.images),
        torch.cat(averaged),
        None if training is None else coarse(training.images),
        networks.distances.get("lpips_vgg"),
        device,
        settings.seed,
    )
    if run.fits.law is not None:
        metrics["calibration_families"] = single(run.fits.families)
    names = {"term": run.config.likelihood.term, calibration.FITTED: "fitted law"}
    laws = {names[law]: calibration.mean_curves(of_law) for law, of_law in curves.items()}
    shown = data.__getitems__(evenly_spread(len(data), SHOWN_SLICES))
    count = min(len(shown), len(samples.images))
    return report.Evaluation(
        metrics,
        tally,
        figures.run_figures(run, store, tally, samples, shown, laws),
        networks.absent | uncompared | absent_metrics(run),
        samples.images[:count],
        shown[:count],
        run.latents,
        laws or None,
    )


def score_batch(
    run: TrainedRun,
    tally: Tally,
    images: Tensor,
    generator: torch.Generator,
    draws: torch.Generator,
) -> Scored:
    """All that is known of a batch (B,C,H,W), which passes the encoder once.

    The decoder it passes at the posterior's mean, at a draw for the bound, and at those of
    calibration. generator, draws: of the bound's latents, and of calibration's.
    """
    middle, law = run.objective.vae.infer(images), run.fits.law
    own = model_scores(run.objective, images, middle, generator, law)
    spreads = calibration.expected_spread(run.objective, images, middle, draws, law)
    return tally.score(images, middle.reconstruction, own, spreads)


def model_scores(
    objective: Objective,
    images: Tensor,
    middle: Inference,
    generator: torch.Generator,
    fitted: ResidualLaw | None = None,
) -> dict[str, Tensor]:
    """A model's own scores (B,) of images (B,C,H,W); middle: the result of `VAE.infer` for them.

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
    scores = {"rate": parts.rate}
    if (kernel := objective.kernel(middle.latent)) is not None:
        scores["kernel_width"] = kernel_width(kernel)
    bits = images[0].numel() * math.log(2)
    if objective.term.density and not warm_up:
        scores["elbo_bits_per_dim"] = -parts.elbo / bits
    if fitted is not None:
        nll = fitted(parts.reconstruction).nll(images - parts.reconstruction)
        scores["elbo_bits_per_dim_fitted"] = (nll + parts.rate) / bits
    return scores


def decode_prior(run: TrainedRun, generator: torch.Generator) -> Tensor:
    """Images decoded from draws of the prior, on the CPU: (evaluation.samples,C,H,W)."""
    settings, vae, prior = run.config.evaluation, run.objective.vae, run.fits.prior
    drawn = vae.prior_latents if prior is None else prior.sample
    latents = drawn(settings.samples, generator)
    return torch.cat([vae.decode(z) for z in latents.split(settings.batch_size)]).cpu()


def memorised(
    run: TrainedRun, samples: Tensor, plane: str
) -> tuple[dict[str, Interval], dict[str, str]]:
    """Scores of whether samples are copies; or why there are none, by metric."""
    keys = [metric.key for metric in MEMORISATION]
    if run.training is None or run.held_out is None:
        return {}, dict.fromkeys(keys, NO_STORE)
    if min(run.training.count, run.held_out.count) < 2:
        return {}, dict.fromkeys(keys, "they need two families trained on and two held out")
    data, seed = run.config.data, run.config.evaluation.seed
    flip = data.flip and plane != "sagittal"
    return memorisation(samples, run.training, run.held_out, data.augmentation, flip, seed), {}


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


def with_run_config(config: Config, run_config: Config, given: Iterable[str]) -> Config:
    """The configuration to evaluate with: the run's, but for what evaluation takes anew (HONOURED).

    Args:
        config: of the command line.
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
