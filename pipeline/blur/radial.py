"""Radial frequency bins of the half spectrum: one number for all directions of a frequency."""

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.blur.spectrum import half_spectrum_weights


class RadialBins(nn.Module):
    """Bins by the distance from the origin, rounded, in steps of 1/max(H,W) cycles/pixel.

    index (H,W//2+1): the bin of each frequency; counts (n,): frequencies of the full spectrum in
    each, float64.
    """

    index: Tensor
    counts: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        # In numpy: a model whose shapes alone are asked for is built without values.
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

    def mean(self, power: Tensor) -> Tensor:
        """The mean over batch, channels and bin of (B,C,H,W//2+1): (n,)."""
        counts = self.counts.to(power.dtype)
        shared = power.mean(dim=(0, 1)) * half_spectrum_weights(self.width, power)
        summed = torch.zeros_like(counts).index_add(0, self.index.flatten(), shared.flatten())
        return summed / counts

    def average(self, values: Tensor) -> Tensor:
        """The mean over all frequencies of a value a bin: (n,) -> ()."""
        counts = self.counts.to(values.dtype)
        return (values * counts).sum() / counts.sum()

    def spread(self, values: Tensor) -> Tensor:
        """A value a bin at every frequency: (n,) -> (1,1,H,W//2+1)."""
        return values[self.index][None, None]
