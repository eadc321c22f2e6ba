"""Figures that can be read on their own: title, labels, units.

Every function returns a matplotlib Figure of the object interface: no pyplot, so no global state,
no window, and safe in worker threads. `figure.savefig(path)` writes it.
Images are (N,C,H,W) in [0,1], tensors or arrays, C 1 (grey) or 3 (colour).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.blur.kernel_loss import kernel_width
from pipeline.figures import (
    COLOURS,
    Array,
    as_array,
    as_images,
    bare,
    image_grid,
    legend_below,
    plain_decimals,
)
from pipeline.metrics.sharpness import HIGH_FREQUENCY, POWER_FLOOR

_COLUMNS = 8
_ERROR_COLOURS = "RdBu_r"


def _show(axes: Axes, image: NDArray[Any]) -> None:
    """One image without ticks, grey or colour, on the full scale [0,1]."""
    axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
    bare(axes)


def reconstructions(
    images: Array,
    reconstructed: Array | Mapping[str, Array],
    subjects: Sequence[str],
    title: str = "Reconstructions of unseen subjects",
) -> Figure:
    """Originals, reconstructions, and signed error maps, a column per subject (at most 8).

    Args:
        images: (N,C,H,W) in [0,1].
        reconstructed: the same shape, or several of them by name, each with its own error row.
        subjects: N labels of the columns.
        title: of the figure.

    Returns:
        Figure: rows original, then reconstruction and reconstruction - original for each name.
        All error maps share one symmetric scale; error of colour images is the mean of channels.

    Raises:
        ValueError: shapes or the number of labels do not match.
    """
    originals = as_images(images)[:_COLUMNS]
    named = reconstructed if isinstance(reconstructed, Mapping) else {"": reconstructed}
    if np.shape(images)[0] != len(subjects):
        raise ValueError(f"{np.shape(images)[0]} images for {len(subjects)} subjects")
    shown = {}
    for name, values in named.items():
        if np.shape(values) != np.shape(images):
            raise ValueError(f"images {np.shape(images)}, reconstructions {np.shape(values)}")
        shown[name] = as_images(values, "reconstructions")[:_COLUMNS]
    errors = {name: (values - originals).mean(axis=-1) for name, values in shown.items()}
    # A few extreme pixels would wash out the rest: the bar's arrows mark values beyond.
    stacked = np.abs(np.concatenate([error.ravel() for error in errors.values()]))
    limit = max(float(np.quantile(stacked, 0.998)), 1e-3)

    columns, rows = len(originals), 1 + 2 * len(shown)
    aspect = originals.shape[1] / originals.shape[2]
    size = (1.4 + 1.25 * max(columns, 3), 0.7 + 1.2 * aspect * rows)
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False)
    for column in range(columns):
        _show(axes[0, column], originals[column])
        axes[0, column].set_title(_shorten(subjects[column]), fontsize=9)
    axes[0, 0].set_ylabel("original", fontsize=9)
    for k, (name, values) in enumerate(shown.items()):
        above, below = axes[1 + 2 * k], axes[2 + 2 * k]
        for column in range(columns):
            _show(above[column], values[column])
            drawn = below[column].imshow(
                errors[name][column], cmap=_ERROR_COLOURS, vmin=-limit, vmax=limit
            )
            bare(below[column])
        above[0].set_ylabel(name or "reconstruction", fontsize=9)
        below[0].set_ylabel("error", fontsize=9)
    # Beside all rows, though only the error rows use it: so that no row is narrower than another.
    bar = figure.colorbar(
        drawn,
        ax=list(axes.ravel()),
        shrink=0.8,
        aspect=12 * rows,
        pad=0.15 / columns,
        extend="both",
    )
    bar.set_label("error: reconstruction − original, intensity (0–1)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(f"{title}\na column per subject, intensity 0–1", fontsize=11)
    return figure


def _shorten(label: str, length: int = 14) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"


def samples(
    sampled: Array,
    data: Array,
    columns: int = 6,
    title: str = "Samples from the prior",
    drawn: str = "z ~ N(0, I)",
) -> Figure:
    """Images drawn from the prior beside those of the data, unsorted and unchosen.

    Args:
        sampled: (N,C,H,W) in [0,1].
        data: (M,C,H,W) in [0,1]; both sides show the first min(N, M), at most 6 full rows.
        columns: images in a row of each side.
        title: of the figure.
        drawn: where the samples' latents come from.

    Raises:
        ValueError: from `image_grid`.
    """
    count = min(len(sampled), len(data), columns * 6)
    grids = [image_grid(values[:count], columns) for values in (data, sampled)]
    height, width = grids[0].shape[:2]
    figure = Figure(figsize=(11.0, 0.7 + 5.4 * height / width), layout="compressed")
    for axes, grid, name in zip(
        figure.subplots(1, 2), grids, ("data", f"samples: decoder(z), {drawn}"), strict=True
    ):
        axes.imshow(grid)
        bare(axes)
        axes.set_title(f"{name}  (n = {count})", fontsize=10)
    figure.suptitle(f"{title}, intensity 0 (black) to 1 (white)", fontsize=11)
    return figure


def kernels(
    images: Array,
    kernels_by_epoch: Mapping[int, Array],
    subjects: Sequence[str] | None = None,
    title: str = "Blur kernels during training",
) -> Figure:
    """Each image and the kernel of what the model blurs in it, by epoch: Figure 2 of the paper.

    Bredell et al., Explicitly Minimizing the Blur Error of Variational Autoencoders, ICLR 2023.

    Args:
        images: (N,C,H,W) in [0,1].
        kernels_by_epoch: epoch to (N,s,s) or (N,1,s,s), s odd, each kernel summing to 1.
        subjects: N labels of the rows.
        title: of the figure.

    Returns:
        Figure: a row per image. All kernels share one logarithmic colour scale; below each is
        its root second moment about the centre, in pixels: 0 is no blur.

    Raises:
        ValueError: no epoch, or not one kernel an image.
    """
    pictures = as_images(images)
    if not kernels_by_epoch:
        raise ValueError("kernels of at least one epoch are needed")
    if subjects is not None and len(subjects) != len(pictures):
        raise ValueError(f"{len(pictures)} images for {len(subjects)} subjects")
    stacks = {}
    for epoch in sorted(kernels_by_epoch):
        values = kernels_by_epoch[epoch]
        if values.ndim == 4 and values.shape[1] == 1:
            values = values[:, 0]
        stacks[epoch] = as_array(values, 3, f"kernels of epoch {epoch}")
        if len(stacks[epoch]) != len(pictures):
            raise ValueError(f"{len(pictures)} images, {len(stacks[epoch])} kernels at {epoch}")
    rows, columns = len(pictures), 1 + len(stacks)
    figure = Figure(figsize=(1.6 + 1.45 * max(columns, 3), 0.9 + 1.65 * rows), layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False)
    # Logarithmic, one for all: a peaked kernel is 100 times as high as a wide one, and the tails,
    # which are the blur, would stay black on a linear scale.
    norm = LogNorm(vmin=1e-5, vmax=1.0, clip=True)
    for row, picture in enumerate(pictures):
        _show(axes[row, 0], picture)
        if subjects is not None:
            axes[row, 0].set_ylabel(_shorten(subjects[row]), fontsize=9)
        for column, (epoch, stack) in enumerate(stacks.items(), start=1):
            panel = axes[row, column]
            drawn = panel.imshow(stack[row], cmap="magma", norm=norm)
            bare(panel)
            width = kernel_width(torch.from_numpy(stack[row])[None, None]).item()
            panel.set_xlabel(f"width {width:.2f} px", fontsize=8, labelpad=2)
            if row == 0:
                panel.set_title(f"epoch {epoch}", fontsize=9)
    bar = figure.colorbar(
        drawn, ax=list(axes.ravel()), shrink=0.8, aspect=12 * rows, pad=0.15 / columns, extend="min"
    )
    bar.ax.tick_params(labelsize=8)
    bar.set_label("kernel weight (all sum to 1)", fontsize=9)
    axes[0, 0].set_title("image", fontsize=9)
    side = stack.shape[-1]
    figure.suptitle(f"{title}\n{side}×{side} pixels", fontsize=11)
    return figure


def spectra(
    frequencies: Array,
    powers: Mapping[str, Array],
    title: str = "Radial power spectra",
    reference: str = "data",
) -> Figure:
    """Power against spatial frequency, and the ratio of each to the data.

    Args:
        frequencies: (n_bins,) cycles/pixel.
        powers: name to (n_bins,), or to (B,n_bins) of which the mean is shown.
        title: of the figure.
        reference: the name in `powers` that the others are divided by.

    Raises:
        ValueError: the reference is missing, or bins do not match.
    """
    axis = as_array(frequencies, 1, "frequencies")
    if reference not in powers:
        raise ValueError(f"powers must include {reference!r}, got {sorted(powers)}")
    curves = {}
    for name, values in powers.items():
        curve = as_array(values, values.ndim, name)
        curve = curve.mean(axis=0) if curve.ndim == 2 else curve
        if curve.shape != axis.shape:
            raise ValueError(f"{name} has bins {curve.shape}, frequencies {axis.shape}")
        curves[name] = curve.clip(min=POWER_FLOOR)
    figure = Figure(figsize=(10.5, 4.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, curve) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "label": name, "lw": 1.8}
        left.semilogy(axis, curve, **style)
        right.semilogy(axis, curve / curves[reference], **style)
    for axes, label, name in (
        (left, "power per frequency (intensity²)", "power"),
        (right, f"power / power of {reference}", f"ratio to {reference}: 1 is as sharp"),
    ):
        axes.axvline(
            HIGH_FREQUENCY,
            color="0.4",
            ls=":",
            lw=1.5,
            label=f"f = {HIGH_FREQUENCY}: high frequencies to its right",
        )
        axes.set_xlim(0.0, 0.5)
        axes.set_xlabel("spatial frequency (cycles/pixel)")
        axes.set_ylabel(label)
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.25, which="both")
    plain_decimals(right.yaxis)
    legend_below(figure, left)
    figure.suptitle(title, fontsize=11)
    return figure
