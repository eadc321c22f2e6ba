"""The evaluation stage: a run's checkpoint and a store -> scores, tables, figures."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.blur.kernel_loss import kernel_width
from pipeline.config import Config, EvaluationConfig
from pipeline.data.slices import SliceDataset, Store, SubjectEntry
from pipeline.errors import InputError
from pipeline.evaluation import calibration, calibration_figures, figures, samples
from pipeline.evaluation.networks import Networks
from pipeline.evaluation.pairs import mean_of, slice_scores, subject_scores
from pipeline.evaluation.record import Evaluation
from pipeline.losses.residual import ResidualLaw
from pipeline.metrics import sharpness
from pipeline.metrics.aggregate import aggregate, bootstrap
from pipeline.metrics.perceptual import PerceptualDistance
from pipeline.models.prior import LatentPrior
from pipeline.progress import Reporter
from pipeline.training.checkpoint import TrainingState
from pipeline.training.objective import Objective

NO_TRAINING = "the store it was trained on is not here"
MOST_TRAINING = 4096
# Real slices beside the prior's samples.
SHOWN_SLICES = 24


def refuse_trained_on(entries: list[SubjectEntry], state: TrainingState) -> None:
    """Raise InputError where a person to be scored was trained on, naming whom.

    A person is known by subject, by family, or by the very file.
    """
    known = state.trained_on
    subjects = {person["subject"] for person in known}
    families = {person["family"] for person in known}
    files = {person["source_sha256"] for person in known}
    seen = [
        entry.subject
        for entry in entries
        if entry.subject in subjects or entry.family in families or entry.source_sha256 in files
    ]
    if seen:
        shown = ", ".join(seen[:5]) + (", …" if len(seen) > 5 else "")
        raise InputError(
            f"{len(seen)} of {len(entries)} subjects were trained on by this run ({shown}): "
            "score evaluation.split test, or a store of other people"
        )


def people_to_score(
    state: TrainingState, store: Store, settings: EvaluationConfig
) -> list[SubjectEntry]:
    """The people of the split that is asked for.

    state: a checkpoint's. Raises InputError for an empty split, images of another shape than were
    trained on, and people who were trained on.
    """
    entries = store.subjects(settings.split)
    if not entries:
        raise InputError(f"store {store.name} has nobody in split {settings.split}")
    if list(store.image_shape) != list(state.image_shape):
        raise InputError(
            f"store {store.name} holds images of {store.image_shape}, the run was trained on "
            f"{tuple(state.image_shape)}: prepare it with the same prepare.size"
        )
    refuse_trained_on(entries, state)
    return entries


def training_slices(store: Store) -> Tensor:
    """Slices that were trained on, at most 4,096, evenly spread: (n,C,H,W)."""
    data = SliceDataset(store, store.subjects("train"))
    count = min(len(data), MOST_TRAINING)
    return data.__getitems__(np.linspace(0, len(data) - 1, count).round().astype(int).tolist())


@torch.no_grad()
def evaluate(
    objective: Objective,
    prior: LatentPrior | None,
    state: TrainingState,
    store: Store,
    entries: list[SubjectEntry],
    networks: Networks,
    config: Config,
    training: Tensor | None = None,
    fitted: ResidualLaw | None = None,
) -> Evaluation:
    """Score a trained objective on some people of a store.

    objective: averaged weights in evaluation mode; prior: what samples are drawn from in place of
    N(0,I); state: the checkpoint's; networks: from `load_networks`; training: slices (n,C,H,W) that
    it was trained on, which samples are compared with; fitted: the law of the residuals.
    """
    settings = config.evaluation
    device = next(objective.parameters()).device
    data = SliceDataset(store, entries)
    generator = torch.Generator(device).manual_seed(settings.seed)
    sampled = _decode_prior(objective, prior, settings, generator)
    sample_power = sharpness.radial_power(sampled).mean(dim=0)
    sample_detail = {key: measure(sampled) for key, measure in sharpness.RATIOS.items()}
    sets = networks.image_sets()
    # Of its own, so that the other metrics do not depend on what calibration draws.
    draws = torch.Generator(device).manual_seed(settings.seed)
    curves: dict[str, list[calibration.Curves]] = {}
    averaged: list[Tensor] = []

    rows: list[dict[str, Any]] = []
    powers: dict[str, list[Tensor]] = {"data": [], "reconstruction": []}
    shown: list[tuple[Tensor, Tensor]] = []
    counts = [len(entry.slice_indices) for entry in entries]
    if settings.max_slices:
        counts = [min(count, settings.max_slices) for count in counts]
    with Reporter() as reporter:
        work = _Work(reporter, sum(counts) + (len(sampled) if sets else 0), settings.batch_size)
        if sets:
            for batch in work.batches(sampled, "prior samples"):
                for compared in sets:
                    compared.add("sample", batch.to(device))
        for index, entry in enumerate(entries):
            images = data.of_subject(index, settings.max_slices)
            parts, spreads = [], []
            for batch in work.batches(images, f"subject {index + 1}/{len(entries)}"):
                batch = batch.to(device)
                part = score_slices(objective, batch, networks.distances, generator, fitted)
                for compared in sets:
                    compared.add("data", batch)
                    compared.add("reconstruction", part["reconstruction"])
                parts.append(part)
                spreads.append(calibration.expected_spread(objective, batch, draws, fitted))
            reconstruction = torch.cat([part.pop("reconstruction") for part in parts]).cpu()
            row = mean_of(parts)
            calibrated, found = calibration.of_subject(images, spreads)
            row |= calibrated
            for law, curve in found.items():
                curves.setdefault(law, []).append(curve)
            averaged.append(samples.coarse(images))
            whole, (power, power_rec) = subject_scores(images, reconstruction)
            row |= whole
            for key, measure in sharpness.RATIOS.items():
                row[f"sample_{key}"] = sharpness.ratio_of_means(measure(images), sample_detail[key])
            row["sample_spectrum_error"] = sharpness.spectrum_error(power, sample_power[None])
            powers["data"].append(power.mean(dim=0))
            powers["reconstruction"].append(power_rec.mean(dim=0))
            middle = len(images) // 2
            shown.append((images[middle], reconstruction[middle]))
            rows.append(
                {
                    "subject": entry.subject,
                    "family": entry.family,
                    "split": entry.split,
                    "slices": len(images),
                    **row,
                }
            )
    scored = [key for key in rows[0] if key not in ("subject", "family", "split", "slices")]
    values = {key: np.array([row[key] for row in rows]) for key in scored}
    metrics = aggregate(values, settings.bootstrap, settings.seed)
    metrics["sample_blur_effect"] = bootstrap(
        sharpness.blur_effect(sampled).numpy(), settings.bootstrap, settings.seed
    )
    for compared in sets:
        metrics |= compared.scores(settings.seed)
    metrics |= samples.sample_scores(
        samples.coarse(sampled),
        torch.cat(averaged),
        None if training is None else samples.coarse(training),
        networks.distances.get("lpips_vgg"),
        device,
        settings.seed,
    )
    absent = dict(networks.absent)
    if training is None:
        absent |= dict.fromkeys(("sample_novelty", "training_kid_coarse"), NO_TRAINING)
    term = config.likelihood.term
    if not objective.term.density:
        absent["elbo_bits_per_dim"] = f"{term} is not a density"
    elif not objective.term.has_scale:
        absent["elbo_bits_per_dim"] = f"{term} was not trained under yet"
    if fitted is None:
        absent["elbo_bits_per_dim_fitted"] = "no law of the residuals was fitted"
    if objective.kernel_network is None:
        absent["kernel_width"] = f"{term} has no kernel network"
    absent |= calibration.missing(objective, term, fitted)
    spectra = {name: torch.stack(values).mean(dim=0) for name, values in powers.items()}
    spread = np.unique(np.linspace(0, len(data) - 1, SHOWN_SLICES).round().astype(int))
    real = torch.stack([data[int(index)] for index in spread])
    source = "z ~ N(0, I)" if prior is None else "z blended of training subjects"
    drawn = _draw_figures(shown, [e.subject for e in entries], sampled, real, source, state, store)
    drawn["spectra.png"] = figures.spectra(
        sharpness.frequencies(*store.image_shape[1:]), {**spectra, "prior samples": sample_power}
    )
    names = {"term": term, calibration.FITTED: "fitted law"}
    laws = {names[law]: calibration.mean_curves(found) for law, found in curves.items()}
    if laws:
        simulated = " (simulated people)" if store.simulated else ""
        drawn["calibration.png"] = calibration_figures.calibration(
            laws, title=f"Calibration on unseen subjects of store {store.name}{simulated}"
        )
    if fitted is not None:
        with torch.no_grad():
            x, rec = (torch.stack([pair[i] for pair in shown[:4]]) for i in (0, 1))
            deviation = fitted(rec.to(device)).standard_deviation(rec.shape).cpu()
        drawn["error_bars.png"] = calibration_figures.error_bars(
            x, rec, deviation, [entry.subject for entry in entries[:4]],
            title=f"How far off a reconstruction is, and how far off it says it can be{simulated}",
        )  # fmt: skip
    return Evaluation(metrics, rows, drawn, absent, laws or None)


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


def score_slices(
    objective: Objective,
    images: Tensor,
    distances: dict[str, PerceptualDistance],
    generator: torch.Generator,
    fitted: ResidualLaw | None = None,
) -> dict[str, Tensor]:
    """Scores of each slice, (B,), and its `reconstruction` (B,C,H,W).

    Reconstructions decode the posterior's mean; the ELBO, absent where the term is no density, is
    that of one draw, with the σ of training; the fitted one has the law of the residuals in place
    of the term's, whose floor it depends on. Bits per dimension are those of a density over
    intensities in [0,1]: add 8 to compare with images of 256 levels. Both are under the decoder's
    prior N(0,I), whatever samples are drawn from. The kernel's width is what the kernel network
    says of the blur at the posterior's mean, in pixels; absent without one.
    """
    found = objective.vae.infer(images)
    reconstruction, kernel = found.reconstruction, objective.kernel(found.latent)
    # A term that was not trained under yet has no value: the rate is the same without it.
    parts = objective.elbo(images, generator, warm_up=not objective.term.has_scale)
    scores = slice_scores(images, reconstruction, distances) | {"rate": parts.rate}
    if kernel is not None:
        scores["kernel_width"] = kernel_width(kernel)
    bits = images[0].numel() * math.log(2)
    if objective.term.density and objective.term.has_scale:
        scores["elbo_bits_per_dim"] = -parts.elbo / bits
    if fitted is not None:
        nll = fitted(parts.reconstruction).nll(images - parts.reconstruction)
        scores["elbo_bits_per_dim_fitted"] = (nll + parts.rate) / bits
    return {**{k: v.double().cpu() for k, v in scores.items()}, "reconstruction": reconstruction}


def _decode_prior(
    objective: Objective,
    prior: LatentPrior | None,
    settings: EvaluationConfig,
    generator: torch.Generator,
) -> Tensor:
    """Images decoded from prior draws, on the CPU: (samples,C,H,W)."""
    drawn = objective.vae.prior_latents if prior is None else prior.sample
    latents = drawn(settings.samples, generator)
    return torch.cat([objective.vae.decode(z) for z in latents.split(settings.batch_size)]).cpu()


def _draw_figures(
    shown: list[tuple[Tensor, Tensor]],
    subjects: list[str],
    sampled: Tensor,
    real: Tensor,
    fitted: str,
    state: TrainingState,
    store: Store,
) -> dict[str, Any]:
    """Figures of at most eight subjects, evenly spread, and of the kernels in training."""
    chosen = np.unique(np.linspace(0, len(shown) - 1, min(8, len(shown))).round().astype(int))
    images = torch.stack([shown[i][0] for i in chosen])
    simulated = " (simulated people)" if store.simulated else ""
    drawn = {
        "reconstructions.png": figures.reconstructions(
            images,
            torch.stack([shown[i][1] for i in chosen]),
            [subjects[i] for i in chosen],
            title=f"Reconstructions of unseen subjects of store {store.name}{simulated}",
        ),
        "samples.png": figures.samples(
            sampled,
            real,
            title=f"Samples from the prior beside unseen subjects{simulated}",
            drawn=fitted,
        ),
    }
    history = state.kernel_history
    if history and state.kernel_images is not None:
        epochs = sorted(history)
        # Most happens early: behind the first, the epochs shown are spread by their logarithm.
        wanted = np.geomspace(max(epochs[0], 1), max(epochs[-1], 1), 4)
        spread = {min(epochs[1:] or epochs, key=lambda epoch: abs(epoch - w)) for w in wanted}
        spread.add(epochs[0])
        drawn["kernels.png"] = figures.kernels(
            state.kernel_images[::2],
            {epoch: history[epoch][::2, 0] for epoch in sorted(spread)},
        )
    return drawn
