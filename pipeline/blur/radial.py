"""Radial frequency bins of the half spectrum: one number for all directions of a frequency."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.blur.spectrum import half_spectrum_weights


class RadialBins(nn.Module):
    """Bins by the distance from the origin, rounded, in steps of 1/max(H,W) cycles/pixel.

    Attributes:
        index: the bin of each frequency.
        counts: frequencies of the full spectrum in each bin, float64.
    """

    index: Int[Tensor, "H half_W"]
    counts: Float[Tensor, " bins"]

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        # In numpy: torch's meta device builds a model without values, and these are needed.
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
        _, bins = np.unique((frequency * max(height, width)).round(), return_inverse=True)
        index = torch.from_numpy(bins.reshape(frequency.shape))
        weights = half_spectrum_weights(width, torch.from_numpy(frequency)).expand(height, -1)
        counts = torch.bincount(index.flatten(), weights.flatten())
        self.width = width
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("counts", counts, persistent=False)

    def __len__(self) -> int:
        return len(self.counts)

    def mean(self, power: Float[Tensor, "B C H half_W"]) -> Float[Tensor, " bins"]:
        """The mean over batch, channels and bin."""
        counts = self.counts.to(power.dtype)
        shared = power.mean(dim=(0, 1)) * half_spectrum_weights(self.width, power)
        summed = torch.zeros_like(counts).index_add(0, self.index.flatten(), shared.flatten())
        return summed / counts

    def average(self, values: Float[Tensor, " bins"]) -> Float[Tensor, ""]:
        """The mean over all frequencies of one value a bin."""
        counts = self.counts.to(values.dtype)
        return (values * counts).sum() / counts.sum()

    def spread(self, values: Float[Tensor, " bins"]) -> Float[Tensor, "1 1 H half_W"]:
        """Each bin's value at every frequency of the bin."""
        return values[self.index][None, None]
