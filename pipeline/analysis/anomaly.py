"""Anomaly maps of a NIfTI volume: where it is not what the decoder expects.

OUTPUT/anomaly.nii.gz     the whitened residual, or the restoration's change, over the image
OUTPUT/methods.csv        every map's size in the brain and, with lesions, how well it finds them
OUTPUT/overlay.png        some slices with the maps over them
OUTPUT/summary.json       options, image and all scores
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from data_prep.common.progress import Reporter
from pipeline.analysis import jobs
from pipeline.analysis.baselines import gradient
from pipeline.analysis.jobs import AnomalyOptions as Options
from pipeline.analysis.jobs import Tail
from pipeline.analysis.solver import gaussian
from pipeline.data import volumes
from pipeline.data.slices import evenly_spread
from pipeline.errors import InputError
from pipeline.figures import bare, mark_sides, write_figure
from pipeline.files import csv_text, write_json, write_text
from pipeline.package.package import DecoderPackage

# Images at once.
BATCH = 32
# Intensity a step: Adam's steps do not depend on the gradient's size, which σ and C change a lot.
STEP = 0.01
# Of the total variation, to be differentiable at 0; intensity.
SMOOTH = 1e-3


def run(options: Options) -> None:
    """Map one volume and write the results. Raises InputError, in one line, for bad input."""
    decoders = jobs.open_decoders(options, options.device)
    model, assumed = decoders["package"], options.assume_orientation
    mask = Path(options.mask) if options.mask else None
    volume = volumes.prepare_volume(
        Path(options.image), model.prepare_keys, mask, assume_orientation=assumed
    )
    lesions = None
    if options.lesions:
        lesions = volumes.read_labels(Path(options.lesions), volume, assumed)
    name = volume.path.name
    notes = [f"{name}: {words}" for words in volume.odd]
    if volume.simulated:
        notes.append(f"{name} is of a simulated person, says its header")
    for which, decoder in decoders.items():
        notes += jobs.caveats(decoder, volume.simulated)
        if decoder.trained_on(source_sha256=volume.sha256):
            if lesions is not None:
                raise InputError(
                    f"{name} was trained on by the {which}: score an image of another subject, or "
                    "map this one without --lesions"
                )
            notes.append(f"the {which} was trained on {name}")
    named = jobs.named_folder(options, "anomaly", jobs.image_name(volume.path))
    there = jobs.results(options, named, decoders.values(), "summary.json")
    with there as folder, Reporter() as reporter:
        if folder is None:
            return
        for note in notes:
            print(f"note: {note}")
        images = torch.from_numpy(volume.slices.images).to(options.device)
        signed = deviations(model, images, options.finest, decoders.get("baseline"))
        if options.restore_steps:
            restored = restore(
                model, images, options.restore_steps,
                progress=lambda part: reporter.update(part, "restoration"),
            )  # fmt: skip
            signed = {"restoration": images.cpu() - restored, **signed}
        inside = volume.brain & volumes.seen(volume)
        shown = {
            method: volumes.put_back(one_sided(v, options.tail)[:, 0].numpy(), volume) * inside
            for method, v in signed.items()
        }
        # Intensity needs no model and keeps the volume's own pixels: it is the bar to clear.
        bar = torch.from_numpy(volume.data - np.median(volume.data[inside]))
        rows = []
        for method, mapped in {**shown, "intensity": one_sided(bar, options.tail).numpy()}.items():
            values = mapped[inside]
            row: dict[str, Any] = {"method": method, "mean": float(values.mean())}
            row["p99"] = float(np.quantile(values, 0.99))
            rows.append(row if lesions is None else row | detect(values, lesions[inside]))
        chief = next(iter(shown))
        unit = dict.fromkeys(shown, "intensity (0–1)") | {"whitened": "standard deviations"}
        what = f"{chief}, tail: {options.tail}, {unit[chief]}"
        summary = {
            "options": vars(options),
            "decoders": {which: jobs.record(decoder) for which, decoder in decoders.items()},
            "image_sha256": volume.sha256,
            "simulated": volume.simulated,
            "notes": notes,
            "law": model.which,
            "map": what,
            "slices": len(volume.slices.indices),
            "slices_like_training": int(volume.like_training.sum()),
            "brain_voxels": int(volume.brain.sum()),
            "brain_seen": float(inside.sum() / volume.brain.sum()),
            "methods": rows,
        }
        if lesions is not None:
            summary["lesion_voxels"] = int(lesions.sum())
            summary["lesion_voxels_seen"] = int((lesions & inside).sum())
        title = f"Anomaly maps of {name}, tail: {options.tail}"
        title += " (simulated person)" if volume.simulated else ""
        volumes.write_like(folder / "anomaly.nii.gz", shown[chief], volume, what)
        write_figure(folder / "overlay.png", overlay(volume, shown, unit, inside, lesions, title))
        write_text(folder / "methods.csv", csv_text(rows))
        write_json(folder / "summary.json", summary)
    short = [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows]
    print(csv_text(short).replace(",", "\t"))
    print(f"map, table and figure: {folder}")


@torch.no_grad()
def deviations(
    model: DecoderPackage,
    images: Tensor,
    finest: int = 0,
    baseline: DecoderPackage | None = None,
) -> dict[str, Tensor]:
    """Image − reconstruction, so dark is negative: (n,1,H,W) by name, on the CPU.

    "whitened": C^(-1/2) S⁻¹ of it under the model's law, in standard deviations: an error counts
    for less where the decoder often errs. "residual" and "baseline_residual": intensity.

    model: of healthy anatomy, with a Gaussian law; images (n,1,H,W) in [0,1]; finest: side of the
    finest level whose latents are used, 0 = all; baseline: another model, which needs no law.
    """

    def latent_of(decoder: DecoderPackage, batch: Tensor) -> Tensor:
        latent = decoder.encode(batch).mean
        return decoder.up_to(latent, finest) if finest else latent

    parts: dict[str, list[Tensor]] = {}
    for batch in images.split(BATCH):
        latent = latent_of(model, batch)
        decoded = model.decode(latent)
        law = gaussian(model.law(latent, decoded=decoded))
        maps = {"whitened": law.whiten(batch - decoded), "residual": batch - decoded}
        if baseline is not None:
            maps["baseline_residual"] = batch - baseline.decode(latent_of(baseline, batch))
        for name, values in maps.items():
            parts.setdefault(name, []).append(values.cpu())
    return {name: torch.cat(values) for name, values in parts.items()}


def one_sided(signed: Tensor, tail: Tail) -> Tensor:
    """A signed deviation's size, at least 0: both ways, only dark, or only bright."""
    if tail == "both":
        return signed.abs()
    return (signed if tail == "bright" else -signed).clamp_min(0)


def total_variation(image: Tensor) -> Tensor:
    """Sum over pixels of the length of the forward difference, isotropic: (B,C,H,W) -> (B,).

    Rudin, Osher, Fatemi 1992; intensity units. Smoothed, less the smoothing's own value, so that a
    constant image has 0.
    """
    length = (gradient(image).square().sum(dim=0) + SMOOTH**2).sqrt() - SMOOTH
    return length.sum(dim=(1, 2, 3))


def restore(
    model: DecoderPackage,
    images: Tensor,
    steps: int,
    tv: float = 1.0,
    progress: Callable[[float], None] = lambda _: None,
) -> Tensor:
    """The healthy images nearest to images (n,1,H,W) in [0,1]; deterministic.

    Chen, You, Tezcan, Konukoglu, Unsupervised lesion detection via image restoration with a
    normative prior, Medical Image Analysis 64, 2020 (arXiv 2005.00031): x maximises

        ELBO(x) − w · TV(x − y),   ELBO(x) = log p(x|z) − KL(q(z|x) ‖ p(z)),   z the mean of q(z|x)

    where y is what was measured: the prior p(x), here bounded by the ELBO, pulls x towards healthy
    anatomy, and the total variation favours changes that are connected, as lesions are.

    model: of healthy anatomy; images: y; steps: of Adam (Kingma & Ba 2015), its step falling
    linearly to 0; tv: w in units of one over the root of the law's mean variance a pixel, so that
    it means the same for every model; progress: gets the share that is done.
    """
    restored = []
    batches = images.split(BATCH)
    for index, measured in enumerate(batches):
        with torch.no_grad():
            law = model.law(model.encode(measured).mean)
            variance = law.standard_deviation(measured.shape).square()
            weight = tv / variance.mean(dim=(1, 2, 3)).sqrt()
        image = measured.clone().requires_grad_()
        optimizer = torch.optim.Adam([image], lr=STEP)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = STEP * (1 - step / steps)
            posterior = model.encode(image)
            elbo = model.log_likelihood(image, posterior.mean) - posterior.rate()
            loss = (weight * total_variation(image - measured) - elbo).sum()
            (image.grad,) = torch.autograd.grad(loss, image)
            optimizer.step()
            with torch.no_grad():
                image.clamp_(0, 1)
            progress((index + (step + 1) / steps) / len(batches))
        restored.append(image.detach().cpu())
    return torch.cat(restored)


def detect(score: np.ndarray, lesion: np.ndarray) -> dict[str, float | None]:
    """Scores of finding lesions by {score >= t}, voxel by voxel, over all t.

    auroc: 0.5 is chance; average_precision: the share of lesion voxels is chance; best_dice: the
    highest of all t, a bound on that of any one, and the threshold where it is reached. Dice is
    2 |A ∩ B| / (|A| + |B|) (Ecology 26, 1945). Score (n,) float, lesion (n,) bool, both of the
    brain's voxels; None without both classes.
    """
    if lesion.all() or not lesion.any():
        return dict.fromkeys(("auroc", "average_precision", "best_dice", "threshold"))
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # a threshold takes all equal scores
    taken, hits = np.flatnonzero(last) + 1, np.cumsum(lesion[order])[last]
    recall, false = hits / hits[-1], (taken - hits) / (len(score) - hits[-1])
    dice = 2 * hits / (taken + hits[-1])
    best = int(np.argmax(dice))
    return {
        "auroc": float(np.trapezoid(np.append(0, recall), np.append(0, false))),
        "average_precision": float((np.diff(recall, prepend=0) * hits / taken).sum()),
        "best_dice": float(dice[best]),
        "threshold": float(ordered[last][best]),
    }


def overlay(
    volume: volumes.PreparedVolume,
    maps: Mapping[str, np.ndarray],
    units: Mapping[str, str],
    brain: np.ndarray,
    lesions: np.ndarray | None,
    title: str,
) -> Figure:
    """The image alone, then every map over it, a column per slice.

    maps: name to a map (X,Y,Z), at least 0; each has a colour scale of its own, up to the 99.5th
    percentile inside the brain. brain, lesions: (X,Y,Z) bool. Up to five slices, evenly spread
    over those with at least a third of the lesions, or of the first map, of the heaviest.
    """
    view = volume.in_pixel_axes
    weight = view(next(iter(maps.values())) if lesions is None else lesions).sum(axis=(1, 2))
    heavy = np.flatnonzero(weight >= weight.max() / 3)
    slices = [int(heavy[place]) for place in evenly_spread(len(heavy), 5)]
    axes_of = [int(np.argmax(np.abs(volume.slices.affine[:3, k]))) for k in (0, 1)]
    height, width = (float(np.linalg.norm(volume.affine[:3, axis])) for axis in axes_of)
    size = (1.2 + 1.8 * max(len(slices), 3), 0.9 + 2.0 * (1 + len(maps)))
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(1 + len(maps), len(slices), squeeze=False)
    for row, name in enumerate(["image", *maps]):
        axes[row, 0].set_ylabel(name, fontsize=9)
        for panel, index in zip(axes[row], slices, strict=True):
            image = view(volume.data)[index]
            panel.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=height / width)
            bare(panel)
            if row == 0:
                mark_sides(panel, volume.plane)
                panel.set_title(f"{volume.plane} slice {index}", fontsize=9)
            if lesions is not None and view(lesions)[index].any():
                panel.contour(view(lesions)[index], levels=[0.5], colors="cyan", linewidths=0.6)
    for row, (name, values) in enumerate(maps.items(), start=1):
        high = max(float(np.quantile(values[brain], 0.995)), 1e-6)
        scale: dict[str, Any] = {"cmap": "inferno", "vmin": 0, "vmax": high}
        for panel, index in zip(axes[row], slices, strict=True):
            shown = view(values)[index]
            # Transparent where nothing is unexpected: the anatomy stays visible.
            opacity = np.clip(shown / high, 0, 1) ** 0.7 * view(brain)[index]
            panel.imshow(shown, alpha=opacity, aspect=height / width, **scale)
        opaque = axes[row, 0].imshow(shown * np.nan, aspect=height / width, **scale)
        bar = figure.colorbar(opaque, ax=list(axes[row]), shrink=0.85, pad=0.01, extend="max")
        bar.set_label(units[name], fontsize=8)
    drawn_by = "\ncyan: lesions as drawn by raters" if lesions is not None else ""
    figure.suptitle(title + drawn_by, fontsize=10)
    return figure
