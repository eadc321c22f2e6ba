"""Figures of a scored run that can be read on their own: title, labels, units.

Figures are of matplotlib's object interface: no pyplot, so no global state, no window, and safe in
worker threads. Images are tensors (N,C,H,W) in [0,1], C 1 (grey) or 3 (colour).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.blur.kernel_loss import kernel_width
from pipeline.data.slices import Store, evenly_spread
from pipeline.evaluation.calibration import BINS, LEVEL, REGIONS
from pipeline.evaluation.run import TrainedRun
from pipeline.evaluation.samples import PriorSamples
from pipeline.evaluation.scoring import Pair, Tally
from pipeline.figures import (
    COLOURS,
    SIDES,
    as_images,
    bare,
    image_grid,
    legend_below,
    mark_sides,
    plain_decimals,
)
from pipeline.metrics.sharpness import HIGH_FREQUENCY, POWER_FLOOR, frequencies

SHOWN_SUBJECTS, SHOWN_ERRORS = 8, 4
# Images of each side of the figure of samples, and in a row of it.
SHOWN_SAMPLES, COLUMNS = 36, 6


def run_figures(
    run: TrainedRun,
    store: Store,
    tally: Tally,
    drawn: PriorSamples,
    data: Tensor,
    laws: Mapping[str, Mapping[str, object]],
) -> dict[str, Figure]:
    """Figures of a scored run by file name.

    data: slices (n,C,H,W) to show beside samples; laws: the content of calibration.json.
    """
    simulated = " (simulated people)" if store.simulated else ""
    split = run.config.evaluation.split
    of = f"{split if split != 'all' else 'all splits'}, store {store.name}{simulated}"
    made = pair_figures(tally, of, store.plane, prior_samples=drawn.power)
    title = f"Samples from the prior beside data: {of}"
    made["samples.png"] = samples(drawn.images, data, title, run.latents, store.plane)
    history, images = run.state.kernel_history, run.state.kernel_images
    if history and images is not None:
        half = {epoch: kernels_of[::2] for epoch, kernels_of in history.items()}
        title = f"Blur kernels during training{simulated}"
        made["kernels.png"] = kernels(images[::2], half, title)
    if laws:
        made["calibration.png"] = calibration(laws, f"Calibration: {of}")
    if run.fits.law is not None:
        title = f"Errors of reconstructions beside the standard deviation of the fitted law\n{of}"
        pairs = tally.shown[:SHOWN_ERRORS]
        shown = torch.stack([pair.reconstruction for pair in pairs])
        deviation = run.fits.law(shown.to(run.device)).standard_deviation(shown.shape).cpu()
        made["error_bars.png"] = error_bars(pairs, deviation, title, store.plane)
    return made


def pair_figures(tally: Tally, of: str, plane: str, **powers: Tensor) -> dict[str, Figure]:
    """Reconstructions of at most eight subjects, evenly spread, and spectra of all, by file name.

    of: whose they are, for the titles; powers: name to radial power (n_bins,) to draw beside,
    "_" for a space.
    """
    pairs = [tally.shown[number] for number in evenly_spread(len(tally.shown), SHOWN_SUBJECTS)]
    data, reconstruction = (torch.stack(x).mean(dim=0) for x in zip(*tally.powers, strict=True))
    beside = {name.replace("_", " "): power for name, power in powers.items()}
    curves = {"data": data, "reconstruction": reconstruction, **beside}
    shape = pairs[0].image.shape[-2:]
    return {
        "reconstructions.png": reconstructions(pairs, f"Reconstructions of {of}", plane),
        "spectra.png": spectra(shape, curves, f"Radial power spectra, {of}"),
    }


def reconstructions(pairs: Sequence[Pair], title: str, plane: str = "") -> Figure:
    """Originals, reconstructions, and signed errors (mean of channels), a column per subject."""
    images = as_images(torch.stack([pair.image for pair in pairs]))
    made = as_images(torch.stack([pair.reconstruction for pair in pairs]))
    error = (made - images).mean(axis=-1)
    # A few extreme pixels would wash out the rest: the bar's arrows mark values beyond.
    limit = max(float(np.quantile(np.abs(error), 0.998)), 1e-3)
    columns, aspect = len(images), images.shape[1] / images.shape[2]
    size = (1.4 + 1.25 * max(columns, 3), 0.7 + 3.6 * aspect)
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(3, columns, squeeze=False)
    for panel in axes.flat:
        bare(panel)
    for column, pair in enumerate(pairs):
        axes[0, column].imshow(images[column], cmap="gray", vmin=0, vmax=1)
        mark_sides(axes[0, column], plane)
        axes[1, column].imshow(made[column], cmap="gray", vmin=0, vmax=1)
        drawn = axes[2, column].imshow(error[column], cmap="RdBu_r", vmin=-limit, vmax=limit)
        name = pair.subject
        axes[0, column].set_title(name if len(name) <= 14 else name[:13] + "…", fontsize=9)
    for row, label in enumerate(("original", "reconstruction", "error")):
        axes[row, 0].set_ylabel(label, fontsize=9)
    # Beside all rows, though only the errors use it: so that no row is narrower than another.
    bar = figure.colorbar(
        drawn, ax=list(axes.flat), shrink=0.8, aspect=36, pad=0.15 / columns, extend="both"
    )
    bar.set_label("error: reconstruction − original, intensity (0–1)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(f"{title}\na column per subject, intensity 0–1", fontsize=11)
    return figure


def samples(sampled: Tensor, data: Tensor, title: str, latents: str, plane: str = "") -> Figure:
    """As many images drawn from the prior as of the data, unsorted and unchosen.

    latents: of the samples, in words.
    """
    count = min(len(sampled), len(data), SHOWN_SAMPLES)
    grids = [image_grid(values[:count], COLUMNS) for values in (data, sampled)]
    height, width = grids[0].shape[:2]
    figure = Figure(figsize=(11.0, 0.7 + 5.4 * height / width), layout="compressed")
    names = ("data", f"samples: decoder(z), {latents}")
    for axes, grid, name in zip(figure.subplots(1, 2), grids, names, strict=True):
        axes.imshow(grid)
        bare(axes)
        sides = SIDES.get(plane)
        where = f", {sides[0]} at the left" if sides else ""
        axes.set_title(f"{name}  (n = {count}{where})", fontsize=10)
    figure.suptitle(f"{title}, intensity 0 (black) to 1 (white)", fontsize=11)
    return figure


def kernels(images: Tensor, history: Mapping[int, Tensor], title: str) -> Figure:
    """A row per image, and the kernel of what the model blurs in it: Figure 2 of the paper.

    Bredell et al., Explicitly Minimizing the Blur Error of Variational Autoencoders, ICLR 2023.
    history: epoch to the images' kernels (N,1,s,s). All share one logarithmic scale; below each is
    its root second moment about the centre, in pixels: 0 is no blur.
    """
    epochs = sorted(history)
    # Most happens early: behind the first, the epochs shown are spread by their logarithm.
    wanted = np.geomspace(max(epochs[0], 1), max(epochs[-1], 1), 4)
    chosen = {min(epochs[1:] or epochs, key=lambda epoch: abs(epoch - w)) for w in wanted}
    epochs = sorted({epochs[0], *chosen})
    pictures, rows = as_images(images), len(images)
    size = (1.6 + 1.45 * max(1 + len(epochs), 3), 0.9 + 1.65 * rows)
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(rows, 1 + len(epochs), squeeze=False)
    # Logarithmic: a peaked kernel is 100 times as high as a wide one, and the tails, which are the
    # blur, would stay black on a linear scale.
    norm = LogNorm(vmin=1e-5, vmax=1.0, clip=True)
    for panel in axes.flat:
        bare(panel)
    for row, picture in enumerate(pictures):
        axes[row, 0].imshow(picture, cmap="gray", vmin=0, vmax=1)
        for column, epoch in enumerate(epochs, start=1):
            panel, kernel = axes[row, column], history[epoch][row : row + 1].double().cpu()
            drawn = panel.imshow(kernel[0, 0].numpy(), cmap="magma", norm=norm)
            panel.set_xlabel(f"width {kernel_width(kernel).item():.2f} px", fontsize=8, labelpad=2)
            axes[0, column].set_title(f"epoch {epoch}", fontsize=9)
    bar = figure.colorbar(
        drawn, ax=list(axes.flat), shrink=0.8, aspect=12 * rows, pad=0.15 / 4, extend="min"
    )
    bar.ax.tick_params(labelsize=8)
    bar.set_label("kernel weight (all sum to 1)", fontsize=9)
    axes[0, 0].set_title("image", fontsize=9)
    side = kernel.shape[-1]
    figure.suptitle(f"{title}\n{side}×{side} pixels", fontsize=11)
    return figure


def spectra(shape: Sequence[int], powers: Mapping[str, Tensor], title: str) -> Figure:
    """Power against spatial frequency, and its ratio to the data's.

    shape: (H,W) of the images; powers: name to radial power (n_bins,), "data" among them.
    """
    axis = frequencies(*shape).numpy()
    curves = {name: p.double().cpu().numpy().clip(min=POWER_FLOOR) for name, p in powers.items()}
    figure = Figure(figsize=(10.5, 4.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, curve) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "label": name, "lw": 1.8}
        left.semilogy(axis, curve, **style)
        right.semilogy(axis, curve / curves["data"], **style)
    left.set(title="power", ylabel="power per frequency (intensity²)")
    right.set(title="ratio to data: 1 is as sharp", ylabel="power / power of data")
    for axes in (left, right):
        high = f"f = {HIGH_FREQUENCY}: high frequencies to its right"
        axes.axvline(HIGH_FREQUENCY, color="0.4", ls=":", lw=1.5, label=high)
        axes.set(xlim=(0.0, 0.5), xlabel="spatial frequency (cycles/pixel)")
        axes.grid(alpha=0.25, which="both")
    plain_decimals(right.yaxis)
    legend_below(figure, left)
    figure.suptitle(title, fontsize=11)
    return figure


def calibration(laws: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Coverage and whitened variance by region, PIT, whitened variance by frequency.

    laws: at least one, name to the result of `calibration.mean_curves`; the panels of Gaussian laws
    lack the others. title: names store and split.
    """
    figure = Figure(figsize=(11.5, 7.6), layout="constrained")
    (coverage, variance), (pit, spectrum) = figure.subplots(2, 2)
    bar, edges = 0.8 / len(laws), np.linspace(0, 1, BINS + 1)
    for i, (name, curves) in enumerate(laws.items()):
        style: dict[str, Any] = {"color": COLOURS[(i + 1) % len(COLOURS)], "label": name}
        places = np.arange(len(REGIONS)) + (i - (len(laws) - 1) / 2) * bar
        for axes, key in ((coverage, "coverage"), (variance, "region_variance")):
            if key in curves:
                heights = [curves[key].get(region, np.nan) for region in REGIONS]
                axes.bar(places, heights, bar, **style)
        pit.stairs(np.asarray(curves["pit"]) * BINS, edges, lw=1.8, **style)
        if "variance" in curves:
            values = np.asarray(curves["variance"])
            frequency = np.arange(len(values)) / (2 * (len(values) - 1))
            spectrum.semilogy(frequency, values.clip(1e-6), lw=1.8, **style)
    for axes in (variance, coverage):
        axes.set_xticks(range(len(REGIONS)), REGIONS, fontsize=9)
    for axes, target in ((spectrum, 1.0), (variance, 1.0), (pit, 1.0), (coverage, LEVEL)):
        axes.axhline(target, color="0.25", ls=":", lw=1.5, label="as it should be")
        axes.grid(alpha=0.25)
    coverage.set(title="Do 90% of the pixels lie within their 90% intervals?", ylim=(0, 1.02))
    coverage.set(ylabel="share of pixels")
    variance.set(title="Are errors as large as the law expects? (above 1: too sure)")
    variance.set(ylabel="variance over that expected")
    pit.set(title="Where in their distribution do pixels lie? (hump: too unsure)")
    pit.set(xlabel="probability of a smaller residual, brain", ylabel="density")
    spectrum.set(title="The same by spatial frequency, whole image", xlabel="cycles/pixel")
    spectrum.set(ylabel="variance over that expected")
    plain_decimals(spectrum.yaxis)
    legend_below(figure, pit)  # the one panel that every law is in
    figure.suptitle(title, fontsize=11)
    return figure


def calibration_of(evaluations: Mapping[str, Path], title: str) -> Figure | None:
    """The calibration of scored runs side by side; None where no run has a law.

    Args:
        evaluations: a run's name in the figure to the folder of its evaluation.
        title: names the store and the split.
    """
    laws = {
        f"{name}, {law}": curves
        for name, folder in evaluations.items()
        if (path := folder / "calibration.json").exists()
        for law, curves in json.loads(path.read_text("utf-8")).items()
    }
    return calibration(laws, title) if laws else None


def error_bars(pairs: Sequence[Pair], deviation: Tensor, title: str, plane: str = "") -> Figure:
    """A row per slice: image, reconstruction, error, standard deviation by the law, their ratio.

    deviation: (n,C,H,W), intensity; means over channels are shown. Errors and deviations share one
    grey scale; a ratio within ±3 is as expected.
    """
    x = torch.stack([pair.image for pair in pairs]).mean(dim=1).numpy()
    made = torch.stack([pair.reconstruction for pair in pairs]).mean(dim=1).numpy()
    s, error = deviation.mean(dim=1).numpy(), x - made
    top = float(np.quantile(np.abs(error), 0.995)) or 1.0
    columns = [
        ("image", x, "gray", 0, 1),
        ("reconstruction", made, "gray", 0, 1),
        ("|error|", np.abs(error), "magma", 0, top),
        ("standard deviation", s, "magma", 0, top),
        ("error / deviation", error / s, "RdBu_r", -4, 4),
    ]
    rows, aspect = len(x), x.shape[1] / x.shape[2]
    figure = Figure(figsize=(9.6, 1.3 + 1.85 * aspect * rows), layout="constrained")
    # The colour bars have a row of their own: beside a column they would make its pictures smaller.
    cells = figure.add_gridspec(rows + 1, 5, height_ratios=[1.0] * rows + [0.05 / aspect])
    for row, pair in enumerate(pairs):
        drawn = []
        for column, (head, values, colours, low, high) in enumerate(columns):
            axes = figure.add_subplot(cells[row, column])
            drawn.append(axes.imshow(values[row], cmap=colours, vmin=low, vmax=high))
            bare(axes)
            if column == 0:
                mark_sides(axes, plane)
            axes.set_title(head if row == 0 else "", fontsize=9)
            axes.set_ylabel(pair.subject if column == 0 else "", fontsize=8)
    for picture, place, unit, extend in (
        (drawn[0], slice(0, 2), "intensity (0–1)", "neither"),
        (drawn[2], slice(2, 4), "intensity (0–1)", "max"),
        (drawn[4], slice(4, 5), "standard deviations", "both"),
    ):
        axes = figure.add_subplot(cells[rows, place])
        bar = figure.colorbar(picture, cax=axes, orientation="horizontal", extend=extend)
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=10)
    return figure
