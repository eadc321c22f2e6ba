"""Figures of calibration: one law or several side by side, and the errors of single images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.evaluation.calibration import BINS, LEVEL, REGIONS
from pipeline.figures import COLOURS, bare, legend_below, plain_decimals


def calibration(laws: Mapping[str, Mapping[str, Any]], title: str = "Calibration") -> Figure:
    """Coverage and whitened variance by region, PIT, whitened variance by frequency.

    laws: name to what `calibration.mean_curves` gives; the panels of Gaussian laws lack the others.
    Raises ValueError without a law.
    """
    if not laws:
        raise ValueError("curves of at least one law are needed")
    figure = Figure(figsize=(11.5, 7.6), layout="constrained")
    (coverage, variance), (pit, spectrum) = figure.subplots(2, 2)
    bar = 0.8 / len(laws)
    for i, (name, curves) in enumerate(laws.items()):
        colour = COLOURS[(i + 1) % len(COLOURS)]  # black comes last
        places = np.arange(len(REGIONS)) + (i - (len(laws) - 1) / 2) * bar
        for axes, key in ((coverage, "coverage"), (variance, "region_variance")):
            if key in curves:
                heights = [curves[key].get(region, np.nan) for region in REGIONS]
                axes.bar(places, heights, bar, color=colour, label=name)
        pit.stairs(np.asarray(curves["pit"]) * BINS, np.linspace(0, 1, BINS + 1), color=colour,
                   lw=1.8, label=name)  # fmt: skip
        if "variance" in curves:
            values = np.asarray(curves["variance"])
            frequency = np.arange(len(values)) / (2 * (len(values) - 1))
            spectrum.semilogy(frequency, values.clip(1e-6), color=colour, lw=1.8, label=name)
    for axes in (variance, coverage):
        axes.set_xticks(range(len(REGIONS)), REGIONS, fontsize=9)
    for axes, target in ((spectrum, 1.0), (variance, 1.0), (pit, 1.0), (coverage, LEVEL)):
        axes.axhline(target, color="0.25", ls=":", lw=1.5, label="as it should be")
        axes.grid(alpha=0.25)
    coverage.set_ylim(0, 1.02)
    coverage.set(
        title="Do 90% of the pixels lie within their 90% intervals?", ylabel="share of pixels"
    )
    variance.set(
        title="Are errors as large as the law expects? (above 1: too sure)",
        ylabel="variance over that expected",
    )
    pit.set(
        title="Where in their distribution do pixels lie? (hump: too unsure)",
        xlabel="probability of a smaller residual, brain",
        ylabel="density",
    )
    spectrum.set(
        title="The same by spatial frequency, whole image",
        xlabel="cycles/pixel",
        ylabel="variance over that expected",
    )
    plain_decimals(spectrum.yaxis)
    legend_below(figure, pit)  # the one panel that every law is in
    figure.suptitle(title, fontsize=11)
    return figure


def error_bars(
    images: Tensor, reconstructions: Tensor, deviation: Tensor, names: Sequence[str], title: str
) -> Figure:
    """A row per slice: image, reconstruction, error, standard deviation by the law, their ratio.

    images, reconstructions, deviation: (n,C,H,W), intensity, the mean over channels is shown; names
    of the subjects. Errors and deviations share one grey scale; a ratio within ±3 is as expected.
    """
    rows, aspect = len(images), images.shape[-2] / images.shape[-1]
    figure = Figure(figsize=(9.6, 1.3 + 1.85 * aspect * rows), layout="constrained")
    # The colour bars have a row of their own: beside a column they would make its pictures smaller.
    cells = figure.add_gridspec(rows + 1, 5, height_ratios=[1.0] * rows + [0.05 / aspect])
    heads = ("image", "reconstruction", "|error|", "standard deviation", "error / deviation")
    x, rec, s = (v.mean(dim=1).numpy() for v in (images, reconstructions, deviation))
    top = float(np.quantile(np.abs(x - rec), 0.995)) or 1.0
    for r in range(rows):
        error = x[r] - rec[r]
        shown = ((x[r], "gray", 0, 1), (rec[r], "gray", 0, 1), (np.abs(error), "magma", 0, top),
                 (s[r], "magma", 0, top), (error / s[r], "RdBu_r", -4, 4))  # fmt: skip
        drawn = []
        for column, (values, colours, low, high) in enumerate(shown):
            axes = figure.add_subplot(cells[r, column])
            drawn.append(axes.imshow(values, cmap=colours, vmin=low, vmax=high))
            bare(axes)
            if r == 0:
                axes.set_title(heads[column], fontsize=9)
            if column == 0:
                axes.set_ylabel(names[r], fontsize=8)
    for picture, columns, unit, extend in (
        (drawn[0], slice(0, 2), "intensity (0–1)", "neither"),
        (drawn[2], slice(2, 4), "intensity (0–1)", "max"),
        (drawn[4], slice(4, 5), "standard deviations", "both"),
    ):
        bar = figure.colorbar(
            picture,
            cax=figure.add_subplot(cells[rows, columns]),
            orientation="horizontal",
            extend=extend,
        )
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=10)
    return figure
