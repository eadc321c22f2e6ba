"""What a comparison looks like: the same slices under every term, and the trade between scores."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.comparison.leaderboard import Row
from pipeline.figures import COLOURS, bare, image_grid

# The marker changes with each turn of the colours.
MARKERS = ("o", "s", "^")


def side_by_side(
    images: Tensor, reconstructed: Mapping[str, Tensor], subjects: Sequence[str], title: str
) -> Figure:
    """Originals above, then a row per term, the same slices in every row.

    Args:
        images: (N,C,H,W) in [0,1].
        reconstructed: label of the row to (N,C,H,W).
        subjects: N labels of the columns.
        title: of the figure.

    Raises:
        ValueError: from `image_grid`, or shapes that differ.
    """
    rows = {"original": images, **reconstructed}
    if any(values.shape != images.shape for values in rows.values()):
        raise ValueError(f"all rows must be {tuple(images.shape)}")
    count, _, height, width = images.shape
    figure = Figure(
        figsize=(1.9 + 1.3 * count, 0.9 + 1.3 * height / width * len(rows)), layout="compressed"
    )
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row, (label, values) in enumerate(rows.items()):
        for column in range(count):
            panel = axes[row, column]
            panel.imshow(image_grid(values[column : column + 1]), interpolation="nearest")
            bare(panel)
            if row == 0:
                panel.set_title(subjects[column], fontsize=8)
        axes[row, 0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize=11)
    return figure


def perception_distortion(rows: Sequence[Row], key: str, label: str, title: str) -> Figure:
    """PSNR against a perceptual score, a point per term with its spread between seeds.

    Blau, Michaeli, The Perception-Distortion Tradeoff, CVPR 2018. rows: of one rate.
    """
    figure = Figure(figsize=(8.0, 5.2), layout="constrained")
    axes = figure.subplots()
    for index, row in enumerate(rows):
        colour, marker = _look(index)
        axes.errorbar(
            row.mean("psnr"), row.mean(key), xerr=_bar(row, "psnr"), yerr=_bar(row, key),
            color=colour, marker=marker, ms=7, lw=1.2, capsize=2, ls="",
            label=row.name + ("" if row.settled else " †"),
        )  # fmt: skip
    axes.set_xlabel("PSNR (dB), higher is better")
    axes.set_ylabel(f"{label}, lower is better")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.annotate(
        "better", xy=(0.98, 0.02), xytext=(0.86, 0.14), xycoords="axes fraction", fontsize=9,
        color="0.4", arrowprops={"arrowstyle": "->", "color": "0.4"},
    )  # fmt: skip
    figure.suptitle(title, fontsize=11)
    return figure


def rate_distortion(rows: Sequence[Row], keys: Mapping[str, str], title: str) -> Figure:
    """Scores against the rate that was really spent, a line per term.

    rows: of several rates; keys: metric to the axis's label. Bars: spread between seeds.
    """
    figure = Figure(figsize=(2.2 + 4.6 * len(keys), 4.8), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(keys), squeeze=False)[0]
    names = list(dict.fromkeys(row.name for row in rows))
    for panel, (key, label) in zip(panels, keys.items(), strict=True):
        for index, name in enumerate(names):
            line = sorted((r for r in rows if r.name == name), key=lambda r: r.mean("rate"))
            colour, marker = _look(index)
            panel.errorbar(
                [row.mean("rate") for row in line],
                [row.mean(key) for row in line],
                xerr=_bars(line, "rate"),
                yerr=_bars(line, key),
                color=colour, marker=marker, ms=5, lw=1.4, capsize=2, label=name,
            )  # fmt: skip
        panel.set_xlabel("rate (nats)")
        panel.set_ylabel(label)
        panel.grid(alpha=0.25)
    panels[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.suptitle(title, fontsize=11)
    return figure


def _look(index: int) -> tuple[str, str]:
    return COLOURS[index % len(COLOURS)], MARKERS[index // len(COLOURS) % len(MARKERS)]


def _bar(row: Row, key: str) -> float:
    spread = row.spread(key)
    return 0.0 if math.isnan(spread) else spread


def _bars(rows: Sequence[Row], key: str) -> list[float]:
    return [_bar(row, key) for row in rows]
