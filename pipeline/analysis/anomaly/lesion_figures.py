"""Figures of inserted lesions: how many are found, and what the maps look like."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.analysis.anomaly.inserted import Lesion
from pipeline.data.slices import evenly_spread
from pipeline.figures import bare

_COLOURS = {
    "whitened": "#0072B2",
    "residual": "#D55E00",
    "baseline_residual": "#009E73",
    "intensity": "0.45",
}
MOST = 4


def curves(summary: Sequence[Mapping[str, Any]], false_positives: float, title: str) -> Figure:
    """Sensitivity and AUROC over the diameter: a column per contrast, a line per method.

    summary: rows of `lesions.json`. Bands: 95% intervals over families.
    """
    contrasts = list(dict.fromkeys(row["contrast"] for row in summary))
    figure = Figure(figsize=(2.9 * len(contrasts) + 0.6, 5.6), layout="constrained")
    grid = figure.subplots(2, len(contrasts), sharey="row", squeeze=False)
    for column, contrast in enumerate(contrasts):
        for row, key in enumerate(("sensitivity", "auroc")):
            axes = grid[row, column]
            for name, colour in _COLOURS.items():
                mine = [r for r in summary if r["method"] == name and r["contrast"] == contrast]
                if not mine:
                    continue
                mine.sort(key=lambda r: r["diameter"])
                at = [r["diameter"] for r in mine]
                mean, low, high = (
                    np.array([np.nan if r[key][part] is None else r[key][part] for r in mine])
                    for part in ("mean", "low", "high")
                )
                axes.plot(at, mean, ".-", color=colour, label=name)
                axes.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
            axes.grid(alpha=0.3)
            axes.set_xticks(at)
            if row:
                axes.set_ylim(0.3, 1.02)
                axes.axhline(0.5, color="0.3", ls=":", lw=1)
                axes.set_xlabel("diameter, mm")
            else:
                axes.set_ylim(-0.02, 1.02)
                kind = "dark" if contrast < 0 else "bright"
                axes.set_title(f"{kind}, contrast {contrast:+g}", fontsize=10)
    grid[0, 0].set_ylabel(f"sensitivity at {false_positives:g}\nfalse positives a slice")
    grid[1, 0].set_ylabel("AUROC of pixels")
    grid[0, 0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def examples(
    shown: Sequence[tuple[Lesion, Tensor, Tensor, Mapping[str, Tensor]]],
    limits: Mapping[tuple[str, str], float],
    title: str,
) -> Figure:
    """At most four kinds, evenly spread: the slice, and every map up to twice its threshold.

    shown: kind, slice (H,W), where its lesion is (H,W), maps by method (H,W), at least 0.
    """
    chosen = evenly_spread(len(shown), MOST)
    names = list(shown[0][3])
    figure = Figure(
        figsize=(1.9 * (1 + len(names)) + 0.4, 2.0 * len(chosen) + 0.7), layout="constrained"
    )
    grid = figure.subplots(len(chosen), 1 + len(names), squeeze=False)
    for row, number in enumerate(chosen):
        kind, image, where, maps = shown[number]
        pictures = [(image, "gray", 1.0)]
        pictures += [(maps[name], "magma", 2 * limits[name, kind.side]) for name in names]
        for column, (values, colours, top) in enumerate(pictures):
            axes = grid[row, column]
            high = top if 0 < top < float("inf") else float(values.max()) or 1.0
            axes.imshow(values.numpy(), cmap=colours, vmin=0, vmax=high)
            axes.contour(where.numpy(), levels=[0.5], colors="#56B4E9", linewidths=1)
            bare(axes)
            if row == 0:
                axes.set_title(("slice with a lesion", *names)[column], fontsize=9)
        grid[row, 0].set_ylabel(f"{kind.diameter:g} mm, {kind.contrast:+g}", fontsize=8)
    figure.suptitle(f"{title}\n(blue: the lesion; maps up to twice their threshold)", fontsize=10)
    return figure
