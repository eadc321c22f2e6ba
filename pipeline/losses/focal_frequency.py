"""Focal frequency loss."""

from typing import ClassVar

import torch

from pipeline.blur.spectrum import half_spectrum, half_spectrum_sum, power
from pipeline.losses.base import Distortion, ReconstructionTerm
from pipeline.losses.shapes import Images, Transfer

# Errors of this size, intensity units, count for half a pixel value each where the weight is 1.
UNIT = 0.05


class FocalFrequency(ReconstructionTerm):
    """Σ_ω w|E|² / (2 · 0.05²), a distance without unit; E the residual's orthonormal transform.

    w = |E|^α / max_ω |E|^α with α = 1, for each image and channel, without gradient: the worst
    frequencies count most. Jiang, Dai, Wu, Loy, Focal Frequency Loss for Image Reconstruction
    and Synthesis, ICCV 2021, arXiv 2012.12821. The published loss is Σ w|E|² / D; the constant
    brings it to the order of the number of pixel values.
    """

    density: ClassVar[bool] = False

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        spectrum = half_spectrum(image - reconstruction)
        squared = power(spectrum)
        with torch.no_grad():
            modulus = squared.sqrt()
            tiny = torch.finfo(modulus.dtype).tiny
            weight = modulus / modulus.amax(dim=(-2, -1), keepdim=True).clamp_min(tiny)
        weighted = half_spectrum_sum(weight * squared, image.shape[-1]).sum(dim=1)
        return Distortion(weighted / (2 * UNIT**2), spectrum=spectrum)
