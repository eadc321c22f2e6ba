"""The figure of reconstruction and restoration: each method beside the truth, with its errors."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.analysis.inverse.problem import Case
from pipeline.figures import bare

MOST = 4
_ERROR = 0.2


def comparison(cases: Sequence[Case], title: str) -> Figure:
    """The middle slice of at most four subjects: reference, each method, error maps, the mask.

    Images are on the scale [0,1], errors (method − truth) on [−0.2, 0.2].
    """
    shown = cases[:MOST]
    referenced = shown[0].problem.reference is not None
    methods = list(shown[0].images)
    masked = shown[0].problem.mask is not None
    columns = referenced + len(methods) + masked
    rows = len(shown) * (2 if referenced else 1)
    figure = Figure(figsize=(1.75 * columns, 1.85 * rows + 0.6), layout="constrained")
    axes = np.atleast_2d(figure.subplots(rows, columns, squeeze=False))
    for axis in axes.flat:
        bare(axis)
    colours = None
    for number, case in enumerate(shown):
        top = axes[2 * number if referenced else number]
        below = axes[2 * number + 1] if referenced else None
        middle = len(case.images[methods[0]]) // 2
        truth = case.problem.reference
        if truth is not None:
            _show(top[0], truth[middle, 0].numpy())
            top[0].set_title("reference" if not number else "", fontsize=8)
        top[0].set_ylabel(case.name, fontsize=8)
        for place, method in enumerate(methods, start=int(referenced)):
            image = case.images[method][middle, 0].numpy()
            _show(top[place], image)
            if not number:
                top[place].set_title(method, fontsize=8)
            if truth is not None and below is not None:
                colours = below[place].imshow(
                    image - truth[middle, 0].numpy(), cmap="RdBu_r", vmin=-_ERROR, vmax=_ERROR
                )
                scores = case.scores[method]
                below[place].set_xlabel(
                    f"{scores['psnr']:.1f} dB, SSIM {scores['ssim']:.3f}", fontsize=7
                )
        if masked and case.problem.mask is not None:
            top[-1].imshow(case.problem.mask.numpy(), cmap="gray", vmin=0, vmax=1)
            top[-1].set_title("k-space mask" if not number else "", fontsize=8)
    if colours is not None:
        bar = figure.colorbar(colours, ax=axes, shrink=0.4, pad=0.01)
        bar.set_label("error, intensity", fontsize=8)
    if referenced:
        title += "\n(the middle slice of each; scores are means over a subject's slices)"
    figure.suptitle(title, fontsize=9)
    return figure


def _show(axis: Axes, image: np.ndarray) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=1)
