"""Figures of a comparison: scores, paired differences, the same slices, calibration."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.comparison.plan import at_rate
from pipeline.evaluation import calibration_figures
from pipeline.figures import COLOURS, bare, image_grid, legend_below
from pipeline.metrics.catalogue import RECONSTRUCTION

MARKERS = "os^"  # changes with each turn of the colours
LABELS = {metric.key: metric.heading for metric in RECONSTRUCTION}
# Scores against the rate that was spent; last the trade of distortion and perception (Blau,
# Michaeli, CVPR 2018).
PANELS = (("rate", "psnr"), ("rate", "lpips_alex"), ("rate", "kid_vgg16"), ("psnr", "lpips_alex"))
DIFFERENCES = ("psnr", "ssim", "lpips_alex", "high_frequency_ratio")


def scores(runs: pd.DataFrame, title: str) -> Figure:
    """Scores against rate and against each other, a line per term; bars: spread between seeds."""
    panels = [(x, y) for x, y in PANELS if {x, y} <= set(runs.dropna(axis=1))]
    figure = Figure(figsize=(4.2 * len(panels), 4.6), layout="constrained")
    for axes, (x, y) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for index, term in enumerate(dict.fromkeys(runs["term"])):
            line = runs[runs["term"] == term].groupby("rate_target")[[x, y]]
            mean, spread = line.mean().sort_values(x), line.std().fillna(0.0)
            spread = spread.loc[mean.index]
            axes.errorbar(
                mean[x], mean[y], xerr=spread[x], yerr=spread[y], label=term, ms=6, lw=1.2,
                capsize=2, color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index // len(COLOURS) % len(MARKERS)],
            )  # fmt: skip
        axes.set(xlabel=LABELS[x], ylabel=LABELS[y])
        axes.grid(alpha=0.25)
        last = axes
    legend_below(figure, last)
    figure.suptitle(title, fontsize=11)
    return figure


def differences(table: pd.DataFrame, title: str) -> Figure:
    """Paired differences with their intervals, a line per term and rate, a panel per metric."""
    shown = [key for key in DIFFERENCES if key in set(table["metric"])]
    first = table[table["metric"] == shown[0]]
    names = first["term"] + " − " + first["reference"] + ", " + first["rate_target"].map(at_rate)
    size = (1.6 + 2.7 * len(shown), 1.3 + 0.32 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, key in zip(panels, shown, strict=True):
        rows = table[table["metric"] == key]
        ends = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        bars = np.nan_to_num(np.array(ends))
        axes.errorbar(rows["mean"], range(len(rows)), xerr=bars, fmt="o", color=COLOURS[1])
        axes.axvline(0.0, color="0.25", ls=":", lw=1.5)
        axes.set_xlabel(LABELS[key].rstrip(" →↑↓1"))
    panels[0].set_yticks(range(len(names)), names, fontsize=9)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(title, fontsize=11)
    return figure


def side_by_side(rows: Mapping[str, Tensor], subjects: Sequence[str], title: str) -> Figure:
    """A row per label, originals or a term's reconstructions: (N,C,H,W) in [0,1], N subjects."""
    count, _, height, width = next(iter(rows.values())).shape
    size = (1.9 + 1.3 * count, 0.9 + 1.3 * height / width * len(rows))
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row, (label, images) in enumerate(rows.items()):
        for column in range(count):
            panel = axes[row, column]
            panel.imshow(image_grid(images[column : column + 1]), interpolation="nearest")
            bare(panel)
            panel.set_title(subjects[column] if row == 0 else "", fontsize=8)
        axes[row, 0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize=11)
    return figure


def calibration(evaluations: Mapping[str, Path], title: str) -> Figure | None:
    """The calibration of scored runs side by side; None where no run has a law.

    Args:
        evaluations: a run's name in the figure to the folder of its evaluation.
        title: names the store and the split.
    """
    files = {name: folder / "calibration.json" for name, folder in evaluations.items()}
    laws = {
        f"{name}, {law}": curves
        for name, path in files.items()
        if path.exists()
        for law, curves in json.loads(path.read_text("utf-8")).items()
    }
    return calibration_figures.calibration(laws, title) if laws else None
