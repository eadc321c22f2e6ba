"""Figures are complete: they draw, and say what they show and in which unit."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from pipeline.evaluation import figures
from pipeline.figures import image_grid, plain_decimals
from pipeline.metrics import sharpness


def _images(count: int, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, 16, 16, generator=generator)


def _drawn(figure: Figure) -> str:
    """Render it, check that it is no blank, and return all its words."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    assert np.asarray(Image.open(buffer).convert("L")).std() > 5
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstructions_show_subjects_rows_and_units(channels: int) -> None:
    images, names = _images(3, channels), [f"subject{i}" for i in range(3)]
    words = _drawn(figures.reconstructions(images, images, names, "Reconstructions"))
    for word in ("original", "reconstruction", "error", "intensity (0–1)", *names):
        assert word in words


def test_samples_stand_beside_as_many_data() -> None:
    words = _drawn(figures.samples(_images(7), _images(20), "Samples", "z"))
    assert "data  (n = 7)" in words and "samples" in words


def test_kernels_show_epochs_and_widths() -> None:
    point, cross = torch.zeros(2, 2, 1, 5, 5)
    point[:, :, 2, 2] = 1.0
    cross[:, :, [0, 2, 2, 4], [2, 0, 4, 2]] = 0.25
    words = _drawn(figures.kernels(_images(2, 3), {10: cross, 1: point}, "Kernels"))
    for word in ("epoch 1", "epoch 10", "width 0.00 px", "width 2.00 px", "5×5"):
        assert word in words


def test_spectra_show_units_and_the_high_frequencies_and_the_legend_covers_no_panel() -> None:
    power = sharpness.radial_power(_images(3)).mean(dim=0)
    figure = figures.spectra((16, 16), {"data": power, "samples": power / 2}, "Spectra")
    words = _drawn(figure)
    for word in ("cycles/pixel", "intensity²", "power of data", "f = 0.25", "samples"):
        assert word in words
    [legend] = figure.legends
    top = legend.get_window_extent().y1
    assert all(axes.get_tightbbox().y0 >= top and axes.get_legend() is None for axes in figure.axes)


@pytest.mark.parametrize(("low", "labels"), [(0.3, "0.3 0.4 0.5 0.6 0.7 0.8 0.9 1"),
                                             (0.1, "0.1 0.2 0.5 1")])  # fmt: skip
def test_a_ratio_is_labelled_in_plain_decimals(low: float, labels: str) -> None:
    axes = Figure().subplots()
    axes.semilogy([0, 1], [low, 1.0])
    plain_decimals(axes.yaxis)
    bottom, top = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if bottom <= tick <= top]
    shown = axes.yaxis.get_major_formatter().format_ticks(ticks)
    assert shown == labels.split() and not len(axes.yaxis.get_minorticklocs())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_every_pixel_in_its_place(channels: int) -> None:
    images = _images(5, channels)
    grid = image_grid(images, columns=3, gap=2)
    assert grid.shape == (2 * 16 + 2, 3 * 16 + 4, 3) and grid.dtype == np.uint8
    fifth = (images[4].expand(3, 16, 16) * 255).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(grid[18:, 18:34], fifth)
    assert (grid[18:, 36:] == 255).all() and (grid[16:18] == 255).all()


def test_no_figure_touches_the_pyplot_registry() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    figures.samples(_images(2), _images(2), "", "")
    assert pyplot.get_fignums() == before
