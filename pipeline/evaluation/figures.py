"""Figures of a scored run that can be read on their own: title, labels, units.

Figures are of matplotlib's object interface: no pyplot, so no global state, no window, and safe in
worker threads. Images are tensors (N,C,H,W) in [0,1], C 1 (grey) or 3 (colour).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pipeline.blur.kernel_loss import kernel_width
from pipeline.data.slices import Store, evenly_spread
from pipeline.evaluation import calibration_figures
from pipeline.evaluation.pairs import Pair, Tally
from pipeline.evaluation.samples import PriorSamples
from pipeline.evaluation.trained_run import TrainedRun
from pipeline.figures import COLOURS, as_images, bare, image_grid, legend_below, plain_decimals
from pipeline.metrics.sharpness import HIGH_FREQUENCY, POWER_FLOOR, frequencies

SHOWN_SUBJECTS, SHOWN_ERRORS = 8, 4
# Images of each side of the figure of samples, and in a row of it.
SHOWN_SAMPLES, COLUMNS = 36, 6


def run_figures(
    run: TrainedRun,
    store: Store,
    tally: Tally,
    samples_of: PriorSamples,
    data: Tensor,
    laws: Mapping[str, Mapping[str, object]],
) -> dict[str, Figure]:
    """Figures of a scored run by file name.

    data: slices (n,C,H,W) to show beside samples; laws: the content of calibration.json.
    """
    simulated = " (simulated people)" if store.simulated else ""
    split = run.config.evaluation.split
    of = f"{split if split != 'all' else 'all splits'}, store {store.name}{simulated}"
    drawn = pair_figures(tally, of, prior_samples=samples_of.power)
    title = f"Samples from the prior beside data: {of}"
    drawn["samples.png"] = samples(samples_of.images, data, title, run.latents)
    history, images = run.state.kernel_history, run.state.kernel_images
    if history and images is not None:
        half = {epoch: kernels_of[::2] for epoch, kernels_of in history.items()}
        title = f"Blur kernels during training{simulated}"
        drawn["kernels.png"] = kernels(images[::2], half, title)
    if laws:
        drawn["calibration.png"] = calibration_figures.calibration(laws, f"Calibration: {of}")
    if run.fitted is not None:
        images, made, names = _pictures(tally.shown[:SHOWN_ERRORS])
        deviation = run.fitted(made.to(run.device)).standard_deviation(made.shape).cpu()
        title = f"Errors of reconstructions beside the standard deviation of the fitted law\n{of}"
        drawn["error_bars.png"] = calibration_figures.error_bars(
            images, made, deviation, names, title
        )
    return drawn


def _pictures(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, list[str]]:
    """Images and reconstructions (n,C,H,W) of pairs, and whose they are."""
    images = torch.stack([pair.image for pair in pairs])
    made = torch.stack([pair.reconstruction for pair in pairs])
    return images, made, [pair.subject for pair in pairs]


def pair_figures(tally: Tally, of: str, **powers: Tensor) -> dict[str, Figure]:
    """Reconstructions of at most eight subjects, evenly spread, and spectra of all, by file name.

    of: whose they are, for the titles; powers: name to radial power (n_bins,) to draw beside,
    "_" for a space.
    """
    chosen = evenly_spread(len(tally.shown), SHOWN_SUBJECTS)
    images, made, names = _pictures([tally.shown[number] for number in chosen])
    data, reconstruction = (torch.stack(x).mean(dim=0) for x in zip(*tally.powers, strict=True))
    beside = {name.replace("_", " "): power for name, power in powers.items()}
    curves = {"data": data, "reconstruction": reconstruction, **beside}
    return {
        "reconstructions.png": reconstructions(images, made, names, f"Reconstructions of {of}"),
        "spectra.png": spectra(images.shape[-2:], curves, f"Radial power spectra, {of}"),
    }


def reconstructions(images: Tensor, made: Tensor, subjects: Sequence[str], title: str) -> Figure:
    """Originals, reconstructions, and signed errors (mean of channels), a column per subject."""
    rows = [as_images(images), as_images(made)]
    error = (rows[1] - rows[0]).mean(axis=-1)
    # A few extreme pixels would wash out the rest: the bar's arrows mark values beyond.
    limit = max(float(np.quantile(np.abs(error), 0.998)), 1e-3)
    columns, aspect = len(images), images.shape[-2] / images.shape[-1]
    size = (1.4 + 1.25 * max(columns, 3), 0.7 + 3.6 * aspect)
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(3, columns, squeeze=False)
    for column in range(columns):
        for row, pictures in enumerate(rows):
            _show(axes[row, column], pictures[column])
        drawn = axes[2, column].imshow(error[column], cmap="RdBu_r", vmin=-limit, vmax=limit)
        bare(axes[2, column])
        name = subjects[column]
        axes[0, column].set_title(name if len(name) <= 14 else name[:13] + "…", fontsize=9)
    for row, label in enumerate(("original", "reconstruction", "error")):
        axes[row, 0].set_ylabel(label, fontsize=9)
    # Beside all rows, though only the errors use it: so that no row is narrower than another.
    bar = figure.colorbar(
        drawn, ax=list(axes.ravel()), shrink=0.8, aspect=36, pad=0.15 / columns, extend="both"
    )
    bar.set_label("error: reconstruction − original, intensity (0–1)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(f"{title}\na column per subject, intensity 0–1", fontsize=11)
    return figure


def samples(sampled: Tensor, data: Tensor, title: str, drawn: str) -> Figure:
    """As many images drawn from the prior as of the data, unsorted and unchosen.

    drawn: where the samples' latents come from.
    """
    count = min(len(sampled), len(data), SHOWN_SAMPLES)
    grids = [image_grid(values[:count], COLUMNS) for values in (data, sampled)]
    height, width = grids[0].shape[:2]
    figure = Figure(figsize=(11.0, 0.7 + 5.4 * height / width), layout="compressed")
    names = ("data", f"samples: decoder(z), {drawn}")
    for axes, grid, name in zip(figure.subplots(1, 2), grids, names, strict=True):
        axes.imshow(grid)
        bare(axes)
        axes.set_title(f"{name}  (n = {count})", fontsize=10)
    figure.suptitle(f"{title}, intensity 0 (black) to 1 (white)", fontsize=11)
    return figure


def kernels(images: Tensor, history: Mapping[int, Tensor], title: str) -> Figure:
    """A row per image, and the kernel of what the model blurs in it: Figure 2 of the paper.

    Bredell et al., Explicitly Minimizing the Blur Error of Variational Autoencoders, ICLR 2023.
    history: epoch to the images' kernels (N,1,s,s). All share one logarithmic scale; below each is
    its root second moment about the centre, in pixels: 0 is no blur.
    """
    epochs = sorted(history)
    # Most happens early: behind the first, the epochs shown are spread by their logarithm.
    wanted = np.geomspace(max(epochs[0], 1), max(epochs[-1], 1), 4)
    chosen = {min(epochs[1:] or epochs, key=lambda epoch: abs(epoch - w)) for w in wanted}
    epochs = sorted({epochs[0], *chosen})
    pictures, rows = as_images(images), len(images)
    size = (1.6 + 1.45 * max(1 + len(epochs), 3), 0.9 + 1.65 * rows)
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(rows, 1 + len(epochs), squeeze=False)
    # Logarithmic: a peaked kernel is 100 times as high as a wide one, and the tails, which are the
    # blur, would stay black on a linear scale.
    norm = LogNorm(vmin=1e-5, vmax=1.0, clip=True)
    for row, picture in enumerate(pictures):
        _show(axes[row, 0], picture)
        for column, epoch in enumerate(epochs, start=1):
            panel, kernel = axes[row, column], history[epoch][row : row + 1].double().cpu()
            drawn = panel.imshow(kernel[0, 0].numpy(), cmap="magma", norm=norm)
            bare(panel)
            panel.set_xlabel(f"width {kernel_width(kernel).item():.2f} px", fontsize=8, labelpad=2)
            if row == 0:
                panel.set_title(f"epoch {epoch}", fontsize=9)
    bar = figure.colorbar(
        drawn, ax=list(axes.ravel()), shrink=0.8, aspect=12 * rows, pad=0.15 / 4, extend="min"
    )
    bar.ax.tick_params(labelsize=8)
    bar.set_label("kernel weight (all sum to 1)", fontsize=9)
    axes[0, 0].set_title("image", fontsize=9)
    side = kernel.shape[-1]
    figure.suptitle(f"{title}\n{side}×{side} pixels", fontsize=11)
    return figure


def spectra(shape: Sequence[int], powers: Mapping[str, Tensor], title: str) -> Figure:
    """Power against spatial frequency, and its ratio to the data's.

    shape: (H,W) of the images; powers: name to radial power (n_bins,), "data" among them.
    """
    axis = frequencies(*shape).numpy()
    curves = {
        name: power.double().cpu().numpy().clip(min=POWER_FLOOR) for name, power in powers.items()
    }
    figure = Figure(figsize=(10.5, 4.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, curve) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "label": name, "lw": 1.8}
        left.semilogy(axis, curve, **style)
        right.semilogy(axis, curve / curves["data"], **style)
    for axes, label, name in (
        (left, "power per frequency (intensity²)", "power"),
        (right, "power / power of data", "ratio to data: 1 is as sharp"),
    ):
        high = f"f = {HIGH_FREQUENCY}: high frequencies to its right"
        axes.axvline(HIGH_FREQUENCY, color="0.4", ls=":", lw=1.5, label=high)
        axes.set_xlim(0.0, 0.5)
        axes.set_xlabel("spatial frequency (cycles/pixel)")
        axes.set_ylabel(label)
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.25, which="both")
    plain_decimals(right.yaxis)
    legend_below(figure, left)
    figure.suptitle(title, fontsize=11)
    return figure


def _show(axes: Axes, image: NDArray[Any]) -> None:
    """One image (H,W,C) without ticks, grey or colour, on the full scale [0,1]."""
    axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
    bare(axes)
