"""An anomaly map over its image, to be looked at."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.figures import bare

COLUMNS = 5


def overlay(
    image: np.ndarray,
    rows: Mapping[str, tuple[np.ndarray, str]],
    slices: list[int],
    labels: list[str],
    *,
    brain: np.ndarray,
    lesions: np.ndarray | None,
    aspect: float,
    title: str,
) -> Figure:
    """The image alone, then every map over it, a column per slice.

    image, brain (bool), lesions (bool or None): (slice, row, column). rows: name to a map of that
    shape, at least 0, and its unit; each has a colour scale of its own, up to the 99.5th
    percentile inside the brain. slices: indices to show; labels: of them. aspect: a row's height
    over a column's width, mm/mm.
    """
    figure = Figure(
        figsize=(1.2 + 1.8 * max(len(slices), 3), 0.9 + 2.0 * (1 + len(rows))), layout="compressed"
    )
    axes = figure.subplots(1 + len(rows), len(slices), squeeze=False)
    for column, (index, label) in enumerate(zip(slices, labels, strict=True)):
        _show(axes[0, column], image[index], aspect)
        axes[0, column].set_title(label, fontsize=9)
        _contour(axes[0, column], lesions, index)
    axes[0, 0].set_ylabel("image", fontsize=9)
    for row, (name, (values, unit)) in enumerate(rows.items(), start=1):
        high = max(float(np.quantile(values[brain], 0.995)), 1e-6)
        for column, index in enumerate(slices):
            panel = axes[row, column]
            _show(panel, image[index], aspect)
            shown = values[index]
            # Transparent where nothing is unexpected: the anatomy stays visible.
            opacity = np.clip(shown / high, 0, 1) ** 0.7 * brain[index]
            drawn = panel.imshow(
                shown, cmap="inferno", vmin=0, vmax=high, alpha=opacity, aspect=aspect
            )
            _contour(panel, lesions, index)
        axes[row, 0].set_ylabel(name, fontsize=9)
        drawn = panel.imshow(values[slices[0]] * np.nan, cmap="inferno", vmin=0, vmax=high,
                             aspect=aspect)  # fmt: skip
        bar = figure.colorbar(drawn, ax=list(axes[row]), shrink=0.85, pad=0.01, extend="max")
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=8)
    drawn_by = "\ncyan: lesions as drawn by raters" if lesions is not None else ""
    figure.suptitle(title + drawn_by, fontsize=10)
    return figure


def _show(axes: Axes, plane: np.ndarray, aspect: float) -> None:
    axes.imshow(plane, cmap="gray", vmin=0, vmax=1, aspect=aspect)
    bare(axes)


def _contour(axes: Axes, lesions: np.ndarray | None, index: int) -> None:
    if lesions is not None and lesions[index].any():
        axes.contour(lesions[index], levels=[0.5], colors="cyan", linewidths=0.6)


def slices_to_show(weight: np.ndarray, count: int = COLUMNS) -> list[int]:
    """Which slices to show, ascending: the heaviest, but no two within a tenth of the range.

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
