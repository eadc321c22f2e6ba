"""What all figures share; matplotlib, which takes a second, is left to those who draw."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinguishable without red and green.
COLOURS = ("black", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")


def bare(axes: "Axes") -> None:
    """Take ticks and frame away, as pictures need none."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def write_figure(path: Path, figure: "Figure") -> None:
    """Write a figure as PNG, atomically; the same figure gives the same bytes."""
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
