"""The evaluation stage: a run's checkpoint and a store -> scores, tables, figures."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.blur.kernel_loss import kernel_width
from pipeline.data.slices import SliceDataset, Store, SubjectEntry, evenly_spread
from pipeline.evaluation import calibration
from pipeline.evaluation.networks import Networks
from pipeline.evaluation.pairs import Tally, mean_of
from pipeline.evaluation.record import Evaluation
from pipeline.evaluation.run_figures import report_pictures, run_figures
from pipeline.evaluation.samples import PriorSamples, coarse, sample_scores
from pipeline.evaluation.trained_run import TrainedRun
from pipeline.losses.residual import ResidualLaw
from pipeline.metrics import sharpness
from pipeline.metrics.statistics import interval, single
from pipeline.progress import Reporter
from pipeline.training.objective import Objective


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
    settings = run.config.evaluation
    generator = torch.Generator(run.device).manual_seed(settings.seed)
    # Of its own, so that the other metrics do not depend on what calibration draws.
    draws = torch.Generator(run.device).manual_seed(settings.seed)
    data = SliceDataset(store, entries)
    tally = Tally(networks, store.image_set)
    prior_samples = PriorSamples(decode_prior(run, generator))
    sampled = prior_samples.images
    averaged: list[Tensor] = []
    curves: dict[str, list[calibration.Curves]] = {}
    limit = settings.max_slices or len(data)
    slices = sum(min(len(entry.slice_indices), limit) for entry in entries)
    with Reporter() as reporter:
        work = _Work(reporter, slices + bool(tally.sets) * len(sampled), settings.batch_size)
        if tally.sets:
            for batch in work.batches(sampled, "prior samples"):
                tally.compare("sample", batch.to(run.device))
        for number, entry in enumerate(entries):
            images = data.of_subject(number, settings.max_slices)
            batches = work.batches(images, f"subject {number + 1}/{len(entries)}")
            scores, reconstruction, found = score_subject(
                run, images, batches, tally, generator, draws
            )
            labels = {"subject": entry.subject, "family": entry.family, "split": entry.split}
            places = _places(entry, settings.max_slices)
            row = tally.add(labels, scores, images, reconstruction, places)
            row |= prior_samples.beside(images, tally.powers[-1][0])
            averaged.append(coarse(images))
            for law, curve in found.items():
                curves.setdefault(law, []).append(curve)
    metrics = tally.metrics(settings)
    metrics["sample_blur_effect"] = interval(sharpness.blur_effect(sampled).numpy())
    metrics |= sample_scores(
        coarse(sampled),
        torch.cat(averaged),
        None if run.training is None else coarse(run.training),
        networks.distances.get("lpips_vgg"),
        run.device,
        settings.seed,
    )
    if run.fitted is not None:
        metrics["calibration_families"] = single(run.families)
    names = {"term": run.config.likelihood.term, calibration.FITTED: "fitted law"}
    laws = {names[law]: calibration.mean_curves(found) for law, found in curves.items()}
    drawn = run_figures(run, data, tally, prior_samples, laws)
    absent = networks.absent | absent_metrics(run)
    pictures = report_pictures(run, data, tally, prior_samples)
    return Evaluation(metrics, tally.rows, drawn, absent, pictures, laws or None)


def _places(entry: SubjectEntry, limit: int) -> list[int]:
    """The numbers in their volume of the slices that `SliceDataset.of_subject` gives."""
    indices = entry.slice_indices
    return [indices[number] for number in evenly_spread(len(indices), limit or len(indices))]


class _Work:
    """How many of all images are done: subjects can hold ten slices or ten thousand."""

    def __init__(self, reporter: Reporter, total: int, batch_size: int) -> None:
        self._reporter = reporter
        self._total = total
        self._batch_size = batch_size
        self._done = 0

    def batches(self, images: Tensor, note: str) -> Iterator[Tensor]:
        """The images in batches, each counted when it is done with."""
        for batch in images.split(self._batch_size):
            yield batch
            self._done += len(batch)
            self._reporter.update(self._done / self._total, note)


def decode_prior(run: TrainedRun, generator: torch.Generator) -> Tensor:
    """Images decoded from draws of the prior, on the CPU: (evaluation.samples,C,H,W)."""
    settings, vae = run.config.evaluation, run.objective.vae
    drawn = vae.prior_latents if run.prior is None else run.prior.sample
    latents = drawn(settings.samples, generator)
    return torch.cat([vae.decode(z) for z in latents.split(settings.batch_size)]).cpu()


def score_subject(
    run: TrainedRun,
    images: Tensor,
    batches: Iterator[Tensor],
    tally: Tally,
    generator: torch.Generator,
    draws: torch.Generator,
) -> tuple[dict[str, float], Tensor, dict[str, calibration.Curves]]:
    """One subject through the model, batch by batch.

    Args:
        run: what is scored.
        images: all slices of the subject, (n,C,H,W), on the CPU.
        batches: the same, (B,C,H,W) each.
        tally: its sets get the images and the reconstructions.
        generator: of the ELBO's draws, on the model's device.
        draws: of the draws of calibration, on the same device.

    Returns:
        Means over slices by metric, reconstructions (n,C,H,W) on the CPU, and curves by law.
    """
    parts, reconstructions, spreads = [], [], []
    for batch in batches:
        batch = batch.to(run.device)
        scores, reconstruction = model_scores(run.objective, batch, generator, run.fitted)
        parts.append(tally.slice_scores(batch, reconstruction) | scores)
        reconstructions.append(reconstruction.cpu())
        spreads.append(calibration.expected_spread(run.objective, batch, draws, run.fitted))
    calibrated, curves = calibration.of_subject(images, spreads)
    return mean_of(parts) | calibrated, torch.cat(reconstructions), curves


def model_scores(
    objective: Objective,
    images: Tensor,
    generator: torch.Generator,
    fitted: ResidualLaw | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """A model's own scores (B,) of images (B,C,H,W), and its reconstructions of them.

    Reconstructions decode the posterior's mean. The scores are

    rate: nats.
    kernel_width: pixels, the kernel network's at the posterior's mean; absent without one.
    elbo_bits_per_dim: of one draw, under the term with the σ of training; absent where the term is
        no density.
    elbo_bits_per_dim_fitted: the same under `fitted`, the law of residuals; its floor counts.

    Bits per dimension are those of a density over intensities in [0,1]: add 8 to compare with
    images of 256 levels. They are under the prior N(0,I), whatever samples are drawn from.
    """
    found = objective.vae.infer(images)
    # A term that was not trained under yet has no value: the rate is the same without it.
    parts = objective.elbo(images, generator, warm_up=not objective.term.has_scale)
    scores = {"rate": parts.rate}
    if (kernel := objective.kernel(found.latent)) is not None:
        scores["kernel_width"] = kernel_width(kernel)
    bits = images[0].numel() * math.log(2)
    if objective.term.density and objective.term.has_scale:
        scores["elbo_bits_per_dim"] = -parts.elbo / bits
    if fitted is not None:
        nll = fitted(parts.reconstruction).nll(images - parts.reconstruction)
        scores["elbo_bits_per_dim_fitted"] = (nll + parts.rate) / bits
    return scores, found.reconstruction


def absent_metrics(run: TrainedRun) -> dict[str, str]:
    """The metrics that this run can't have, whatever weights are there, each with the reason."""
    objective, term = run.objective, run.config.likelihood.term
    absent = calibration.missing(objective, term, run.lawless)
    if run.training is None:
        reason = "the store it was trained on is not here"
        absent |= dict.fromkeys(("sample_novelty", "training_kid_coarse"), reason)
    if not objective.term.density:
        absent["elbo_bits_per_dim"] = f"{term} is not a density"
    elif not objective.term.has_scale:
        absent["elbo_bits_per_dim"] = f"{term} has not been trained under yet"
    if run.lawless:
        absent["elbo_bits_per_dim_fitted"] = run.lawless
    if objective.kernel_network is None:
        absent["kernel_width"] = f"{term} has no kernel network"
    return absent
