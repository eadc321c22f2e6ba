"""Tiny packages with random weights."""

from typing import Any

import torch

from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import Level, ModelConfig
from pipeline.package import DecoderPackage, describe

MODEL = ModelConfig(
    levels=[Level(4, 2), Level(8, 1, groups=2)], width=4, max_width=8, kernel_hidden=8
)
LATENTS = MODEL.latent_size
# Of the blur term.
PARTS = ("decoder", "encoder", "kernel_network", "residual")


def make_package(
    term: str = "blur", channels: int = 1, floor: float | None = None, **likelihood: Any
) -> DecoderPackage:
    """A package of random weights for images of 32x32, with scales as after a training.

    floor: of the fitted law of the residuals; None: there is no such law.
    """
    torch.manual_seed(0)
    facts = describe(
        (channels, 32, 32),
        MODEL,
        LikelihoodConfig(term=term, kernel_size=5, **likelihood),
        spacing_mm=3.2,
        orientation="rows A>P, columns L>R",
        plane="axial",
        prepare={"size": 32, "lower_percentile": 0.5},
        run={"name": "tiny"},
        residual=None if floor is None else {"floor": floor},
    )
    package = DecoderPackage(facts)
    for name, buffer in package.named_buffers():
        if name.endswith("running"):
            scales = torch.linspace(-4, -6, max(buffer.numel(), 2))
            buffer.copy_(scales[: buffer.numel()].reshape(buffer.shape))
    return package
