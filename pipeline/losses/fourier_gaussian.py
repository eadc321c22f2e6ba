"""The Gaussian whose stationary covariance all images share."""

from typing import ClassVar

import torch
from torch import Tensor

from pipeline.blur.likelihood import log_determinant, nll, quadratic_form
from pipeline.blur.spectrum import half_spectrum, half_spectrum_weights, power
from pipeline.losses.base import Distortion, ReconstructionTerm, Scale, Shape
from pipeline.losses.config import LikelihoodConfig

# Least power of a radial bin, intensity².
LEAST_POWER = 1e-12


class FourierGaussian(ReconstructionTerm):
    """−log N(x; x̂, Σ), Σ circulant, one variance a radial frequency bin: the best such Σ, nats.

    ½ Σ_ω (|E|²/v_r(ω) + log v_r(ω)) + D/2 log 2π over all frequencies, E the residual's orthonormal
    transform, r its distance from the origin, rounded, in steps of 1/max(H,W) cycles/pixel. The
    optimum v_r is the mean of |E|² over the batch, the channels and the bin: σ-VAE (Rybkin,
    Daniilidis, Levine, Simple and Effective VAE Training with Calibrated Decoders, ICML 2021, arXiv
    2006.13202) with a σ for each bin.
    """

    density: ClassVar[bool] = True
    bins: Tensor
    counts: Tensor

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        super().__init__(config, image_shape)
        if config.scale != "optimal":
            raise ValueError(
                "likelihood.scale must be optimal for likelihood.term fourier_gaussian, whose "
                f"variances are all fitted, not {config.scale}"
            )
        self.shape = image_shape
        _, height, width = image_shape
        frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))
        radius = (frequency * max(height, width)).round()
        _, bins = radius.unique(return_inverse=True)
        weights = half_spectrum_weights(width, frequency).expand(height, -1)
        counts = torch.bincount(bins.flatten(), weights.flatten().double())
        self.register_buffer("bins", bins, persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self.scale = Scale("optimal", shape=tuple(counts.shape))

    def compare(self, image: Tensor, reconstruction: Tensor, transfer: Tensor | None) -> Distortion:
        width = self.shape[-1]
        spectrum = half_spectrum(image - reconstruction)
        counts = self.counts.to(image.dtype)
        shared = power(spectrum.detach()).mean(dim=(0, 1)) * half_spectrum_weights(width, image)
        summed = torch.zeros_like(counts).index_add(0, self.bins.flatten(), shared.flatten())
        scale = self.scale((summed / counts).clamp_min(LEAST_POWER).sqrt())
        precision = scale.square().reciprocal()[self.bins][None, None]
        value = nll(
            quadratic_form(spectrum, precision, width),
            log_determinant(precision, self.shape),
            self.values,
            1.0,
        )
        overall = ((scale.square() * counts).sum() / counts.sum()).sqrt()
        return Distortion(value, overall, spectrum)
