"""Where an image is not what a model of healthy anatomy expects: maps on the slices' pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from pipeline.blur.whitening import whiten
from pipeline.models.vae import Posterior

Tail = Literal["both", "dark", "bright"]
Progress = Callable[[float, str], None]


class NormativeModel(Protocol):
    """What of a decoder package is used here."""

    @property
    def scale(self) -> float: ...
    def encode(self, image: Tensor) -> Posterior: ...
    def decode(self, latent: Tensor) -> Tensor: ...
    def precision(self, latent: Tensor) -> Tensor: ...
    def log_likelihood(self, image: Tensor, latent: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SliceMaps:
    """Of n slices, (n,1,H,W) each; residuals are image − reconstruction, so dark is negative.

    reconstruction and residual in intensity units, whitened in standard deviations of the model's
    own likelihood.
    """

    reconstruction: Tensor
    residual: Tensor
    whitened: Tensor


@torch.no_grad()
def slice_maps(
    model: NormativeModel, images: Tensor, batch_size: int, progress: Progress
) -> SliceMaps:
    """Encode, decode at the posterior's mean, subtract, whiten: images (n,1,H,W) in [0,1].

    Whitening is Σ^(-1/2)/σ with the kernel that the model predicts for that very image: where the
    decoder is known to blur, an error at high frequencies counts for less.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    done = 0
    for batch in images.split(batch_size):
        latent = model.encode(batch).mean
        reconstruction = model.decode(latent)
        residual = batch - reconstruction
        white = whiten(residual, model.precision(latent), model.scale)
        parts.append((reconstruction.cpu(), residual.cpu(), white.cpu()))
        done += len(batch)
        progress(done / len(images), "slices")
    return SliceMaps(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


@torch.no_grad()
def reconstructions(
    model: NormativeModel, images: Tensor, batch_size: int, progress: Progress
) -> Tensor:
    """Decoded posterior means of images (n,1,H,W); needs no likelihood."""
    parts: list[Tensor] = []
    for batch in images.split(batch_size):
        parts.append(model.decode(model.encode(batch).mean).cpu())
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
