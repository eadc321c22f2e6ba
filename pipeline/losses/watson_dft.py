"""Watson's perceptual model in the Fourier domain."""

import json
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.losses.base import Distortion, ReconstructionTerm
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import Images, Shape, Transfer

PARAMETERS = Path(__file__).with_name("watson_dft.json")
BLOCK = 8
# Least brightness of a block: black ones have a threshold, too.
LEAST = 1e-10
# |a − b|/s below this counts by its square: the published power has no finite slope at 0.
SMOOTH = 1e-9
# Blocks whose product of amplitudes is below this have no phase, but rounding.
LEAST_PRODUCT = 1e-12


class WatsonDft(ReconstructionTerm):
    """Perceptual distance after Watson, with masking, of 8×8 blocks; without unit.

        (Σ (|a − b|/s)^p)^(1/p) + Σ w_φ · |angle between F(x) and F(x̂)|,   a = |F(x)|, b = |F(x̂)|

    over blocks and frequencies of their half spectra F. The threshold s rises where the image's
    block is bright, t_l = t (a_dc / mean of a_dc)^α, and where it has contrast: a softmax-weighted
    mean of t_l and a^w t_l^(1−w). Colour is judged in YCbCr, the mean of three such distances with
    weights of their own. All numbers are the authors', fitted to human judgments and in
    `watson_dft.json`: Czolbe, Krause, Cox, Igel, A Loss Function for Generative Neural Networks
    Based on Watson's Perceptual Model, NeurIPS 2020, arXiv 2006.15057. The published sum is of the
    order of the number of pixel values at 32² and 64², and grows faster than it (p < 1).

    As published, training shifts the grid of blocks, replicating the border, by an amount that is a
    function of the number of batches seen: a repeat or a resumed run has the same shifts.
    """

    density: ClassVar[bool] = False
    seen: Int[Tensor, ""]
    threshold: Float[Tensor, "C 8 5"]
    brightness: Float[Tensor, " C"]
    contrast: Float[Tensor, " C"]
    pooling: Float[Tensor, " C"]
    phase: Float[Tensor, "C 8 5"]
    weights: Float[Tensor, " C"]
    transform: Float[Tensor, "3 3"]
    bias: Float[Tensor, "3 1 1"]

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        super().__init__(config, image_shape)
        channels, *sides = image_shape
        if channels not in (1, 3) or any(side % BLOCK for side in sides):
            raise ValueError(
                f"likelihood.term watson_dft needs 1 or 3 channels and sides that are multiples of "
                f"{BLOCK}, not {image_shape}"
            )
        numbers = json.loads(PARAMETERS.read_text(encoding="utf-8"))
        models = numbers["grey" if channels == 1 else "colour"]
        raw = {key: torch.tensor([model[key] for model in models]) for key in models[0]}
        real = torch.zeros(BLOCK, BLOCK // 2 + 1, dtype=torch.bool)
        real[:: BLOCK // 2, :: BLOCK // 2] = True  # these have a sign, but no phase
        constants = {
            "threshold": raw["t_tild"].exp(),
            "brightness": raw["alpha"],
            "contrast": raw["w_tild"].sigmoid(),
            "pooling": raw["beta"],
            "phase": raw["w_phase_tild"].exp().masked_fill(real, 0.0),
            "weights": torch.ones(1),
        }
        if channels == 3:
            constants["weights"] = torch.tensor(numbers["colour_w_tild"]).softmax(dim=0)
            constants["transform"] = torch.tensor(numbers["to_ycbcr"])
            constants["bias"] = torch.tensor(numbers["to_ycbcr_bias"])[:, None, None]
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        if self.training:
            image, reconstruction = self._shifted(image), self._shifted(reconstruction)
            self.seen.add_(1)
        target, found = self._spectra(image), self._spectra(reconstruction)
        amplitude = target.abs()
        sensitivity = self._sensitivity(amplitude)
        ratio = (found.abs() - amplitude) / sensitivity
        power = _of_channel(self.pooling)
        # (ratio² + SMOOTH²)^(p/2) − SMOOTH^p, exactly 0 at 0
        pooled = SMOOTH**power * torch.expm1(power / 2 * torch.log1p((ratio / SMOOTH).square()))
        moduli = pooled.sum(dim=(2, 3, 4, 5)).pow(1 / self.pooling)
        phases = (_of_channel(self.phase) * _angle(target, found)).sum(dim=(2, 3, 4, 5))
        return Distortion((moduli + phases) @ self.weights)

    def _shifted(self, image: Tensor) -> Tensor:
        """The part of the image, its border replicated, that another grid of blocks covers."""
        step = self.seen * 37 % BLOCK**2  # 37 is odd: 64 batches see every shift once
        for dim, shift in ((-2, step // BLOCK), (-1, step % BLOCK)):
            side = image.shape[dim]
            index = torch.arange(side, device=image.device) + shift - BLOCK // 2
            image = image.index_select(dim, index.clamp(0, side - 1))
        return image

    def _spectra(self, image: Tensor) -> Tensor:
        """Half spectra of all blocks: (B,C,H,W) -> complex (B,C,H/8,W/8,8,5)."""
        if image.shape[1] == 3:
            image = torch.einsum("bchw,cd->bdhw", image, self.transform) + self.bias
        rows = image.unfold(-2, BLOCK, BLOCK).unfold(-2, BLOCK, BLOCK)
        return torch.fft.rfft2(rows) / BLOCK**2

    def _sensitivity(self, amplitude: Tensor) -> Tensor:
        """The threshold s of every frequency of every block."""
        constant = amplitude[..., :1, :1]
        relative = (constant + LEAST) / (constant.mean(dim=(2, 3), keepdim=True) + LEAST)
        bright = _of_channel(self.threshold) * relative.pow(_of_channel(self.brightness))
        share = _of_channel(self.contrast)
        busy = amplitude.pow(share) * bright.pow(1 - share)
        return torch.lerp(busy, bright, torch.sigmoid(bright - busy))


def _of_channel(constant: Tensor) -> Tensor:
    """(C,) or (C,8,5) in the shape that fits spectra (B,C,H/8,W/8,8,5)."""
    return constant.reshape(len(constant), 1, 1, *(constant.shape[1:] or (1, 1)))


def _angle(one: Tensor, other: Tensor) -> Tensor:
    """The angle between complex numbers, 0 to π; 0 where one of them is nearly 0."""
    across = one.real * other.imag - one.imag * other.real
    along = one.real * other.real + one.imag * other.imag
    return torch.atan2(across.abs(), along + LEAST_PRODUCT)
