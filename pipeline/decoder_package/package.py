"""A trained decoder with all that an analysis needs of its model."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.blur.likelihood import sample_residual
from pipeline.blur.spectrum import precision, transfer_function
from pipeline.decoder_package.metadata import hashed
from pipeline.errors import InputError
from pipeline.losses.base import ReconstructionTerm
from pipeline.losses.blur import Blur
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.fourier_gaussian import FourierGaussian
from pipeline.losses.gaussian import Gaussian
from pipeline.losses.laplace import Laplace
from pipeline.losses.robust import Robust
from pipeline.models.config import ModelConfig
from pipeline.models.kernel_network import KernelNetwork
from pipeline.models.prior import LatentPrior
from pipeline.models.vae import VAE, Posterior

DENSITIES: dict[str, type[ReconstructionTerm]] = {
    "blur": Blur,
    "fourier_gaussian": FourierGaussian,
    "gaussian": Gaussian,
    "laplace": Laplace,
    "robust": Robust,
}


class DecoderPackage(nn.Module):
    """Decoder, encoder, kernel network, likelihood and fitted prior of a trained VAE, frozen.

    Symbols: image x (B,C,H,W) in [0,1]; latent z (B,L), N(0,I) under the prior whatever the levels
    of the model; everything is float32. Always in evaluation mode; no parameter asks for a
    gradient, while images and latents may have one.

    The likelihood is p(x|z) = N(decode(z), σ²Σ_z) for the terms blur, gaussian and
    fourier_gaussian, with σ = `scale` and the eigenvalues λ of Σ_z⁻¹ = `precision`(z) (Bredell et
    al. 2023, arXiv 2304.05939), and an independent density a pixel for laplace and robust. Other
    terms are distances: with them what needs a likelihood raises InputError.
    """

    def __init__(self, metadata: dict[str, Any]) -> None:
        """metadata: as `metadata.describe` makes it. Raises ValueError where it fits no model."""
        super().__init__()
        model = ModelConfig(**metadata["model"])
        likelihood = LikelihoodConfig(**metadata["likelihood"])
        channels, height, width = metadata["image_shape"]
        if height != width:
            raise ValueError(f"images must be square, not {height}x{width}")
        self.metadata = metadata
        self.image_shape: tuple[int, int, int] = (channels, height, width)
        self.latent_size = model.latent_size
        low, high = metadata["intensity_range"]
        self.intensity_range: tuple[float, float] = (float(low), float(high))
        self.spacing_mm = float(metadata["spacing_mm"])
        self.orientation = str(metadata["orientation"])
        self.plane = str(metadata["plane"])
        self.prepare_keys: dict[str, Any] = metadata["prepare"]
        self.term = likelihood.term
        self.vae = VAE(self.image_shape, model)
        kind = DENSITIES.get(likelihood.term)
        self.density = kind(likelihood, self.image_shape) if kind else None
        self.kernel_network = None
        if kind is not None and kind.needs_kernel:
            if likelihood.kernel_size > min(height, width):
                raise ValueError(f"a kernel of {likelihood.kernel_size} is larger than the images")
            self.kernel_network = KernelNetwork(likelihood.kernel_size, model)
        prior = metadata["prior"]
        self.prior = LatentPrior(self.latent_size, **prior) if prior else None
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "DecoderPackage":
        """Stays in evaluation mode: in training mode a likelihood would refit its scale."""
        return super().train(False)

    def forward(self, latent: Tensor) -> Tensor:
        """`decode`."""
        return self.decode(latent)

    def decode(self, latent: Tensor) -> Tensor:
        """z -> the mean of p(x|z), (B,C,H,W) in [0,1]. Raises ValueError on another shape."""
        self._check(latent, (self.latent_size,), "latents")
        return self.vae.decode(latent)

    def encode(self, image: Tensor) -> Posterior:
        """x -> the posterior (B,L), each draw's given the means of those before it.

        Its mean is the latent to reconstruct with. Raises ValueError on another shape.
        """
        self._check(image, self.image_shape, "images")
        return self.vae.encode(image)

    def kernel(self, latent: Tensor) -> Tensor | None:
        """z -> the kernel (B,1,s,s) of what the model blurs, sum 1; None without a network."""
        if self.kernel_network is None:
            return None
        self._check(latent, (self.latent_size,), "latents")
        return self.kernel_network(latent)

    def precision(self, latent: Tensor) -> Tensor:
        """z -> λ (B,1,H,W//2+1), the eigenvalues of Σ_z⁻¹ in rfft2's layout, without unit.

        Ones for gaussian. For fourier_gaussian λ = σ²/v with σ² the mean of its variances v, so
        that log N(x; decode(z), σ²Σ) is −gaussian_nll(x − decode(z), λ, σ) for every term that has
        a λ. Raises InputError for a term that has none.
        """
        self._check(latent, (self.latent_size,), "latents")
        density, (_, height, width) = self._likelihood(), self.image_shape
        transfer = self._transfer(latent)
        if isinstance(density, Blur) and transfer is not None:
            return precision(transfer, density.constant, density.form)
        shape = (len(latent), 1, height, width // 2 + 1)
        if isinstance(density, FourierGaussian):
            spectrum = self._variances(density).reciprocal() * self.scale**2
            return spectrum[density.bins].expand(shape)
        if isinstance(density, Gaussian):
            return latent.new_ones(shape)
        raise InputError(
            f"the likelihood {self.term} has no precision spectrum: use a decoder that was trained "
            "under likelihood.term blur, gaussian or fourier_gaussian"
        )

    @property
    def scale(self) -> float:
        """The likelihood's scale in intensity units; InputError where the term is no density.

        σ of a Gaussian, for fourier_gaussian the root of its mean variance; b of laplace; c of
        robust, the mean over channels.
        """
        density = self._likelihood()
        if isinstance(density, FourierGaussian):
            weights = density.counts / density.counts.sum()
            return math.sqrt(float((self._variances(density).double() * weights).sum()))
        if isinstance(density, Robust):
            return float(density.log_scale.exp().mean())
        assert isinstance(density, Gaussian | Laplace)
        return float(density.scale(density.scale.running))

    def log_likelihood(self, image: Tensor, latent: Tensor) -> Tensor:
        """log p(x|z) of each image (B,), nats, exact, every constant included.

        Differentiable in x and z, through the kernel too. Raises InputError where the term is no
        density.
        """
        density = self._likelihood()
        self._check(image, self.image_shape, "images")
        return -density(image, self.decode(latent), self._transfer(latent)).value

    def log_prior(self, latent: Tensor) -> Tensor:
        """log N(z; 0, I) of each latent (B,), nats."""
        self._check(latent, (self.latent_size,), "latents")
        return -0.5 * (latent.square().sum(dim=1) + self.latent_size * math.log(2 * math.pi))

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator | None = None, *, noise: bool = False
    ) -> Tensor:
        """Images (count,C,H,W) of latents from the prior; the generator is on this device.

        The prior is the one that was fitted to the training images' latents, `self.prior`, where
        the package has it, else N(0,I). With `noise` a residual drawn from N(0, σ²Σ_z) is added,
        which may leave [0,1]; InputError where the likelihood is no Gaussian.
        """
        drawn = self.vae.prior_latents if self.prior is None else self.prior.sample
        latent = drawn(count, generator)
        image = self.decode(latent)
        if not noise:
            return image
        channels, _, width = self.image_shape
        return image + sample_residual(
            self.precision(latent), self.scale, channels, width, generator
        )

    def trained_on(
        self, *, subject: str | None = None, family: str | None = None, source_sha256: str = ""
    ) -> bool:
        """Whether the training saw this person, this family or this file."""
        seen = self.metadata["trained_on"]
        return (
            (subject is not None and hashed(subject) in seen.get("subject", ()))
            or (family is not None and hashed(family) in seen.get("family", ()))
            or source_sha256 in seen.get("source_sha256", ())
        )

    def _likelihood(self) -> ReconstructionTerm:
        if self.density is None:
            raise InputError(
                f"the reconstruction term {self.term} is no likelihood: use a decoder that was "
                f"trained under likelihood.term {', '.join(DENSITIES)}"
            )
        return self.density

    def _transfer(self, latent: Tensor) -> Tensor | None:
        kernel = self.kernel(latent)
        return None if kernel is None else transfer_function(kernel, self.image_shape[1:])

    @staticmethod
    def _variances(density: FourierGaussian) -> Tensor:
        """v of each radial bin, intensity²."""
        return density.scale(density.scale.running).square()

    @staticmethod
    def _check(values: Tensor, shape: tuple[int, ...], what: str) -> None:
        if tuple(values.shape[1:]) != shape:
            raise ValueError(f"{what} must be (B, {', '.join(map(str, shape))}), "
                             f"not {tuple(values.shape)}")  # fmt: skip
