"""The figures of analyses. Images are shown on the scale [0,1]."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.analysis.inserted import Lesion
from pipeline.analysis.problems import Problem, Solved
from pipeline.data.slices import evenly_spread
from pipeline.data.volumes import PreparedVolume
from pipeline.figures import bare
from pipeline.figures import write_figure as write

__all__ = ["comparison", "curves", "examples", "overlay", "write"]

GRAY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}
ERROR: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -0.2, "vmax": 0.2}
COLOURS = {
    "whitened": "#0072B2",
    "residual": "#D55E00",
    "baseline_residual": "#009E73",
    "intensity": "0.45",
}
# At most so many slices of a volume, and kinds of lesions, are shown.
SLICES, KINDS = 5, 4


def comparison(problem: Problem, solved: Solved, title: str) -> Figure:
    """A subject's middle slice by every method, its errors (method − truth) below, the mask."""
    truth, middle = problem.reference, len(problem.simple) // 2
    panels = {} if truth is None else {"reference": truth[middle, 0]}
    panels |= {method: image[middle, 0] for method, image in solved.images.items()}
    if problem.mask is not None:
        panels["k-space mask"] = problem.mask
    rows = 1 if truth is None else 2
    figure = Figure(figsize=(1.75 * len(panels), 1.85 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, len(panels), squeeze=False)
    for axis in axes.flat:
        bare(axis)
    for column, (name, image) in enumerate(panels.items()):
        axes[0, column].imshow(image.numpy(), **GRAY)
        axes[0, column].set_title(name, fontsize=8)
        if truth is not None and name in solved.scores:
            drawn = axes[1, column].imshow((image - truth[middle, 0]).numpy(), **ERROR)
            scores = solved.scores[name]
            label = f"{scores['psnr']:.1f} dB, SSIM {scores['ssim']:.3f}"
            axes[1, column].set_xlabel(label, fontsize=7)
    if truth is not None:
        bar = figure.colorbar(drawn, ax=axes, shrink=0.6, pad=0.01)
        bar.set_label("error, intensity", fontsize=8)
        title += ": the middle slice; scores are means over slices"
    figure.suptitle(title, fontsize=9)
    return figure


def overlay(
    volume: PreparedVolume,
    maps: Mapping[str, tuple[np.ndarray, str]],
    brain: np.ndarray,
    lesions: np.ndarray | None,
    title: str,
) -> Figure:
    """The image alone, then every map over it, a column per slice.

    maps: name to a map (X,Y,Z), at least 0, and its unit; each has a colour scale of its own, up to
    the 99.5th percentile inside the brain. brain, lesions: (X,Y,Z) bool.
    """
    view = volume.in_pixel_axes
    chief = next(iter(maps.values()))[0] if lesions is None else lesions
    weight = view(chief).sum(axis=(1, 2)).astype(float)
    slices = slices_to_show(weight) or slices_to_show(view(brain).sum(axis=(1, 2)))
    axes_of = [int(np.argmax(np.abs(volume.slices.affine[:3, k]))) for k in (0, 1)]
    height, width = (float(np.linalg.norm(volume.affine[:3, axis])) for axis in axes_of)
    figure = Figure(
        figsize=(1.2 + 1.8 * max(len(slices), 3), 0.9 + 2.0 * (1 + len(maps))), layout="compressed"
    )
    axes = figure.subplots(1 + len(maps), len(slices), squeeze=False)
    for row, name in enumerate(["image", *maps]):
        axes[row, 0].set_ylabel(name, fontsize=9)
        for column, index in enumerate(slices):
            panel = axes[row, column]
            panel.imshow(view(volume.data)[index], aspect=height / width, **GRAY)
            bare(panel)
            if row == 0:
                panel.set_title(f"{volume.plane} slice {index}", fontsize=9)
            if lesions is not None and view(lesions)[index].any():
                panel.contour(view(lesions)[index], levels=[0.5], colors="cyan", linewidths=0.6)
    for row, (values, unit) in enumerate(maps.values(), start=1):
        high = max(float(np.quantile(values[brain], 0.995)), 1e-6)
        scale: dict[str, Any] = {"cmap": "inferno", "vmin": 0, "vmax": high}
        for column, index in enumerate(slices):
            shown = view(values)[index]
            # Transparent where nothing is unexpected: the anatomy stays visible.
            opacity = np.clip(shown / high, 0, 1) ** 0.7 * view(brain)[index]
            axes[row, column].imshow(shown, alpha=opacity, aspect=height / width, **scale)
        opaque = axes[row, 0].imshow(shown * np.nan, aspect=height / width, **scale)
        bar = figure.colorbar(opaque, ax=list(axes[row]), shrink=0.85, pad=0.01, extend="max")
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=8)
    drawn_by = "\ncyan: lesions as drawn by raters" if lesions is not None else ""
    figure.suptitle(title + drawn_by, fontsize=10)
    return figure


def slices_to_show(weight: np.ndarray, count: int = SLICES) -> list[int]:
    """Slices to show, ascending: the heaviest, but no two within a tenth of the range.

    weight: (S,) at least 0, such as the lesions' area; slices of weight 0 are not shown.
    """
    candidates = np.flatnonzero(weight)
    if not len(candidates):
        return []
    apart = max(1, int(np.ptp(candidates)) // (2 * count))
    chosen: list[int] = []
    for index in candidates[np.argsort(-weight[candidates], kind="stable")]:
        if len(chosen) < count and all(abs(int(index) - other) >= apart for other in chosen):
            chosen.append(int(index))
    return sorted(chosen)


def curves(summary: Sequence[Mapping[str, Any]], false_positives: float, title: str) -> Figure:
    """Sensitivity and AUROC over the diameter: a column per contrast, a line per method.

    summary: `kinds` of lesions.json. Bands: 95% intervals over families.
    """
    contrasts = list(dict.fromkeys(row["contrast"] for row in summary))
    figure = Figure(figsize=(2.9 * len(contrasts) + 0.6, 5.6), layout="constrained")
    grid = figure.subplots(2, len(contrasts), sharey="row", squeeze=False)
    for column, contrast in enumerate(contrasts):
        for axes, key in zip(grid[:, column], ("sensitivity", "auroc"), strict=True):
            for name, colour in COLOURS.items():
                mine = [r for r in summary if r["method"] == name and r["contrast"] == contrast]
                mine.sort(key=lambda row: row["diameter"])
                at = [row["diameter"] for row in mine]
                mean, low, high = (
                    np.array([row[key][part] for row in mine], float)
                    for part in ("mean", "low", "high")
                )
                axes.plot(at, mean, ".-", color=colour, label=name if at else None)
                axes.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
            axes.grid(alpha=0.3)
            axes.set_ylim(*((-0.02, 1.02) if key == "sensitivity" else (0.3, 1.02)))
        kind = "dark" if contrast < 0 else "bright"
        grid[0, column].set_title(f"{kind}, contrast {contrast:+g}", fontsize=10)
        grid[1, column].axhline(0.5, color="0.3", ls=":", lw=1)
        grid[1, column].set_xlabel("diameter, mm")
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
    """A few kinds, evenly spread: the slice, and every map up to twice its threshold.

    shown: kind, slice (H,W), where its lesion is (H,W), maps by method (H,W), at least 0.
    """
    chosen = evenly_spread(len(shown), KINDS)
    names = list(shown[0][3])
    size = (1.9 * (1 + len(names)) + 0.4, 2.0 * len(chosen) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(chosen), 1 + len(names), squeeze=False)
    for row, number in enumerate(chosen):
        kind, image, where, maps = shown[number]
        pictures = [(image, "gray", 1.0)]
        pictures += [(maps[name], "magma", 2 * limits[name, kind.side]) for name in names]
        for axes, (values, colours, top) in zip(grid[row], pictures, strict=True):
            high = top if 0 < top < float("inf") else float(values.max()) or 1.0
            axes.imshow(values.numpy(), cmap=colours, vmin=0, vmax=high)
            axes.contour(where.numpy(), levels=[0.5], colors="#56B4E9", linewidths=1)
            bare(axes)
        grid[row, 0].set_ylabel(f"{kind.diameter:g} mm, {kind.contrast:+g}", fontsize=8)
    for axes, name in zip(grid[0], ["slice with a lesion", *names], strict=True):
        axes.set_title(name, fontsize=9)
    figure.suptitle(f"{title}\n(blue: the lesion; maps up to twice their threshold)", fontsize=10)
    return figure
