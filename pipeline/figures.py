"""Colours, legends and grids of all figures; matplotlib is left to those who draw: a second."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Array = NDArray[Any] | torch.Tensor

SIDES = {"axial": "LR", "coronal": "LR", "sagittal": "PA"}
# Distinguishable without red and green.
COLOURS = ("black", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")


def bare(axes: "Axes") -> None:
    """Take ticks and frame away, as pictures need none."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def mark_sides(axes: "Axes", plane: str) -> None:
    """Name the subject's sides at the left and right edge of a slice (Store.plane), if it is one.

    Slices are shown in neurological convention: `data_prep.volume.slices`.
    """
    for letter, place in zip(SIDES.get(plane, ""), (0.02, 0.98), strict=False):
        axes.text(
            place, 0.5, letter, transform=axes.transAxes, color="#FFD166", fontsize=7,
            ha="left" if place < 0.5 else "right", va="center",
        )  # fmt: skip


def plain_decimals(axis: "Axis") -> None:
    """Label a logarithmic axis, whose curves are drawn, at 0.5, 1, 2, …: for ratios near 1."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=range(1, 10) if high < 8 * low else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def legend_below(figure: "Figure", axes: "Axes") -> None:
    """One legend for panels that show the same things, below them all, where it covers nothing.

    figure: of layout "constrained"; axes: the panel whose labels are taken.
    """
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 4), fontsize=9
    )


def write_figure(path: Path, figure: "Figure") -> None:
    """Write a figure as PNG, atomically; the same figure gives the same bytes."""
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})


def as_array(values: Array, ndim: int, name: str) -> NDArray[np.float64]:
    """Values as float64 on the CPU. Raises ValueError where they are empty or of another ndim."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    if array.ndim != ndim or not array.size:
        raise ValueError(f"{name} must have {ndim} dimensions and not be empty, got {array.shape}")
    return np.asarray(array, dtype=np.float64)


def as_images(values: Array, name: str = "images") -> NDArray[np.float64]:
    """(N,C,H,W) to (N,H,W,C) in [0,1]."""
    array = as_array(values, 4, name)
    if array.shape[1] not in (1, 3):
        raise ValueError(f"{name} must have 1 or 3 channels, got {array.shape[1]}")
    return array.transpose(0, 2, 3, 1).clip(0.0, 1.0)


def image_grid(images: Array, columns: int = 8, gap: int = 2) -> NDArray[np.uint8]:
    """Tile images into one, row by row, for logging.

    Args:
        images: (N,C,H,W) in [0,1].
        columns: images in a row.
        gap: pixels between images, white; places left over in the last row are white too.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: not (N,C,H,W), another number of channels, or no column.
    """
    array = as_images(images)
    if columns < 1:
        raise ValueError(f"columns must be positive, got {columns}")
    count, height, width, _ = array.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8
    )
    for i, image in enumerate(array):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        tile = np.round(image * 255.0).astype(np.uint8)
        grid[top : top + height, left : left + width] = tile  # one channel fills all three
    return grid
