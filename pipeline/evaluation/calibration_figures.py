"""How calibrated one run is, or several side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.evaluation.calibration import BINS, LEVEL, REGIONS

_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "black"]


def calibration(runs: Mapping[str, Mapping[str, Any]], title: str = "Calibration") -> Figure:
    """Whitened variance per frequency and region, PIT histograms, coverage; a colour a run.

    runs: name to what `calibration.mean_curves` gives. Raises ValueError without a run.
    """
    if not runs:
        raise ValueError("curves of at least one run are needed")
    figure = Figure(figsize=(11.5, 7.0), layout="constrained")
    (spectrum, variance), (pit, coverage) = figure.subplots(2, 2)
    centres = (np.arange(BINS) + 0.5) / BINS
    bar = 0.8 / len(runs)
    for i, (name, curves) in enumerate(runs.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        values = np.asarray(curves["variance"])
        frequency = np.arange(len(values)) / (2 * (len(values) - 1))
        spectrum.semilogy(frequency, values.clip(1e-6), color=colour, lw=1.8, label=name)
        pit.stairs(np.asarray(curves["pit"]) * BINS, np.linspace(0, 1, BINS + 1), color=colour,
                   lw=1.8, label=f"{name}: pixels")  # fmt: skip
        pit.plot(centres, np.asarray(curves["whitened_pit"]) * BINS, color=colour, ls="none",
                 marker=".", label=f"{name}: whitened")  # fmt: skip
        places = np.arange(len(REGIONS)) + (i - (len(runs) - 1) / 2) * bar
        for axes, key in ((variance, "region_variance"), (coverage, "coverage")):
            heights = [curves[key].get(region, np.nan) for region in REGIONS]
            axes.bar(places, heights, bar, color=colour, label=name)
    for axes in (variance, coverage):
        axes.set_xticks(range(len(REGIONS)), REGIONS, fontsize=9)
    for axes, target in ((spectrum, 1.0), (variance, 1.0), (pit, 1.0), (coverage, LEVEL)):
        axes.axhline(target, color="0.4", ls=":", lw=1.5, label="calibrated")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, loc="lower left" if axes is coverage else "best")
    coverage.set_ylim(0, 1.02)
    spectrum.set(
        title="whitened residual, whole image",
        xlabel="spatial frequency (cycles/pixel)",
        ylabel="variance (1 is as the model says)",
    )
    variance.set(title="whitened residual by region", ylabel="mean square")
    pit.set(
        title="probability integral transform, brain",
        xlabel="Φ(residual / standard deviation)",
        ylabel="density",
    )
    coverage.set(title="coverage of the 90% interval by region", ylabel="share of pixels inside")
    figure.suptitle(title, fontsize=11)
    return figure
