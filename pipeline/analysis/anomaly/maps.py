"""Maps of where an image differs from what a model of healthy anatomy expects, on its pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from pipeline.losses.law import GaussianLaw, Law
from pipeline.models.vae import Posterior

Tail = Literal["both", "dark", "bright"]
Progress = Callable[[float, str], None]


class NormativeModel(Protocol):
    """The parts of a decoder package that are used here."""

    def encode(self, image: Tensor) -> Posterior: ...
    def decode(self, latent: Tensor) -> Tensor: ...
    def up_to(self, latent: Tensor, side: int) -> Tensor: ...
    def law(self, latent: Tensor, /, decoded: Tensor | None = None) -> Law: ...
    def log_likelihood(self, image: Tensor, latent: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SliceMaps:
    """Of n slices, (n,1,H,W) each; residuals are image − reconstruction, so dark is negative.

    reconstruction and residual in intensity units, whitened in standard deviations of the model's
    law.
    """

    reconstruction: Tensor
    residual: Tensor
    whitened: Tensor


@torch.no_grad()
def slice_maps(
    model: NormativeModel, images: Tensor, batch_size: int, progress: Progress, finest: int = 0
) -> SliceMaps:
    """Encode, decode at the posterior's mean, subtract, whiten.

    Whitening is C^(-1/2) S⁻¹ under the model's law: an error counts for less where the decoder
    often errs.

    Args:
        model: of healthy anatomy.
        images: (n,1,H,W) in [0,1].
        batch_size: images at once.
        progress: gets the share that is done, and a note.
        finest: side of the finest level whose latents are used; 0 = all.

    Raises:
        ValueError: the law is not Gaussian, or no level is that coarse.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    done = 0
    for batch in images.split(batch_size):
        latent = _latents(model, batch, finest)
        reconstruction = model.decode(latent)
        residual = batch - reconstruction
        law = model.law(latent, decoded=reconstruction)
        if not isinstance(law, GaussianLaw):
            raise ValueError("residuals can be whitened under a Gaussian law only")
        white = law.whiten(residual)
        parts.append((reconstruction.cpu(), residual.cpu(), white.cpu()))
        done += len(batch)
        progress(done / len(images), "slices")
    return SliceMaps(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _latents(model: NormativeModel, images: Tensor, finest: int) -> Tensor:
    latent = model.encode(images).mean
    return model.up_to(latent, finest) if finest else latent


@torch.no_grad()
def reconstructions(
    model: NormativeModel, images: Tensor, batch_size: int, progress: Progress, finest: int = 0
) -> Tensor:
    """Decoded posterior means (n,1,H,W), as in `slice_maps`; needs no likelihood."""
    parts: list[Tensor] = []
    for batch in images.split(batch_size):
        parts.append(model.decode(_latents(model, batch, finest)).cpu())
        progress(sum(map(len, parts)) / len(images), "slices of the baseline")
    return torch.cat(parts)


def one_sided(signed: Tensor, tail: Tail) -> Tensor:
    """How unexpected a signed deviation is, at least 0: both ways, only dark, or only bright.

    Raises ValueError for another tail.
    """
    if tail == "both":
        return signed.abs()
    if tail in ("dark", "bright"):
        return (signed if tail == "bright" else -signed).clamp_min(0)
    raise ValueError(f"tail must be both, dark or bright, not {tail!r}")
