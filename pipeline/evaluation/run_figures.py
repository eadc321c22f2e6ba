"""The figures of a scored run."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.data.slices import SliceDataset, Store, evenly_spread
from pipeline.evaluation import calibration_figures, figures
from pipeline.evaluation.pairs import Tally
from pipeline.evaluation.report.gathering import Pictures
from pipeline.evaluation.samples import PriorSamples
from pipeline.evaluation.trained_run import TrainedRun

# Slices of the data beside the prior's samples.
SHOWN_SLICES = 24
SHOWN_ERRORS = 4


def run_figures(
    run: TrainedRun, data: SliceDataset, tally: Tally, samples: PriorSamples, laws: dict[str, Any]
) -> dict[str, Figure]:
    """Figures by file name.

    Args:
        run: what was scored.
        data: the slices that it was scored on.
        tally: the subjects' scores.
        samples: images from the prior.
        laws: the content of calibration.json.
    """
    simulated = simulated_note(data.store)
    unseen = f"unseen subjects of store {data.store.name}{simulated}"
    drawn = tally.figures(unseen, prior_samples=samples.power)
    drawn["samples.png"] = figures.samples(
        samples.images,
        _data_slices(data),
        title=f"Samples from the prior beside unseen subjects{simulated}",
        drawn=_latents(run),
    )
    if run.state.kernel_history and run.state.kernel_images is not None:
        drawn["kernels.png"] = _kernels(
            run.state.kernel_history, run.state.kernel_images, simulated
        )
    if laws:
        drawn["calibration.png"] = calibration_figures.calibration(laws, f"Calibration on {unseen}")
    if run.fitted is not None:
        drawn["error_bars.png"] = _error_bars(run, tally, simulated)
    return drawn


def report_pictures(
    run: TrainedRun, data: SliceDataset, tally: Tally, samples: PriorSamples
) -> Pictures:
    """The pictures of the report; arguments as of `run_figures`."""
    shown = _data_slices(data)
    count = min(len(shown), len(samples.images))
    return replace(
        tally.report(), samples=samples.images[:count], data=shown[:count], drawn=_latents(run)
    )


def _data_slices(data: SliceDataset) -> Tensor:
    return data.__getitems__(evenly_spread(len(data), SHOWN_SLICES))


def _latents(run: TrainedRun) -> str:
    """Where the latents of samples come from."""
    return "z ~ N(0, I)" if run.prior is None else "z blended of training subjects"


def simulated_note(store: Store) -> str:
    """What a title adds where the subjects were simulated."""
    return " (simulated people)" if store.simulated else ""


def _kernels(history: dict[int, Tensor], images: Tensor, simulated: str) -> Figure:
    """history: epoch to the kernels of the images, (n,1,s,s); images (n,C,H,W)."""
    epochs = sorted(history)
    # Most happens early: behind the first, the epochs shown are spread by their logarithm.
    wanted = np.geomspace(max(epochs[0], 1), max(epochs[-1], 1), 4)
    chosen = {min(epochs[1:] or epochs, key=lambda epoch: abs(epoch - w)) for w in wanted}
    chosen.add(epochs[0])
    return figures.kernels(
        images[::2],
        {epoch: history[epoch][::2, 0] for epoch in sorted(chosen)},
        title=f"Blur kernels during training{simulated}",
    )


@torch.no_grad()
def _error_bars(run: TrainedRun, tally: Tally, simulated: str) -> Figure:
    assert run.fitted is not None
    names = tally.subjects[:SHOWN_ERRORS]
    images, made = tally.pictures(list(range(len(names))))
    deviation = run.fitted(made.to(run.device)).standard_deviation(made.shape).cpu()
    title = "The error of reconstructions beside the standard deviation of the fitted law"
    return calibration_figures.error_bars(images, made, deviation, names, title + simulated)
