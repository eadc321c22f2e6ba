"""A trained decoder with all that an analysis needs of its model."""

import hashlib
import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.blur.spectrum import transfer_of
from pipeline.data.slices import to_scanner
from pipeline.errors import InputError
from pipeline.losses.base import ReconstructionTerm
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.densities import Blur, FourierGaussian, Gaussian, Laplace, Robust
from pipeline.losses.law import GaussianLaw, LaplaceLaw, Law
from pipeline.losses.residual import ResidualLaw
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

Which = Literal["fitted", "term"]


def hashed(name: str) -> str:
    """SHA-256 of a subject's or a family's name, hexadecimal."""
    return hashlib.sha256(name.encode()).hexdigest()


class DecoderPackage(nn.Module):
    """Decoder, encoder, kernel network, likelihoods and fitted prior of a trained VAE, frozen.

    Symbols: image x (B,C,H,W) in [0,1]; latent z (B,L), N(0,I) under the prior whatever the levels
    of the model; everything is float32. Always in evaluation mode; no parameter asks for a
    gradient, while images and latents may have one.

    The likelihood is p(x|z) = N(decode(z), S C S) under one of two laws. The fitted one is what
    residuals of this decoder are (see `losses.residual`): S = diag(s), s of each pixel, one C. The
    term's is what the decoder was trained under: for blur, gaussian and fourier_gaussian S = σ with
    σ = `scale` and the eigenvalues λ of C⁻¹ = `precision`(z) (Bredell et al. 2023, arXiv
    2304.05939), for laplace and robust an independent density a pixel; other terms are distances,
    and InputError is raised where their law is needed. `which` says the law that `law`,
    `log_likelihood`, `sample` and `standard_deviation` use, and may be set: the fitted one where
    the package has it.

    Example:
        >>> package = open_package("demo")  # a DecoderPackage
        >>> images = package.sample(2)
        >>> package.log_likelihood(images, package.encode(images).mean).shape
        torch.Size([2])
    """

    def __init__(self, metadata: dict[str, Any]) -> None:
        """metadata: as `describe` makes it. Raises ValueError if it fits no model."""
        super().__init__()
        model = ModelConfig(**metadata["model"])
        likelihood = LikelihoodConfig(**metadata["likelihood"])
        channels, height, width = metadata["image_shape"]
        self.metadata = metadata
        self.image_shape: tuple[int, int, int] = (channels, height, width)
        self.latent_size = model.latent_size
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
            self.kernel_network = KernelNetwork(likelihood.kernel_size, model)
        prior = metadata["prior"]
        self.prior = LatentPrior(self.latent_size, **prior) if prior else None
        residual = metadata.get("residual")  # older packages have none
        self.residual = ResidualLaw(self.image_shape, **residual) if residual else None
        self.which: Which = "fitted" if residual else "term"
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "DecoderPackage":
        """Stays in evaluation mode: in training mode a likelihood would refit its scale."""
        return super().train(False)

    def forward(self, latent: Float[Tensor, "B L"]) -> Float[Tensor, "B C H W"]:
        """`decode`."""
        return self.decode(latent)

    def decode(
        self,
        latent: Float[Tensor, "B L"],
        *,
        intensities: Literal["unit", "scanner"] = "unit",
        low: float | None = None,
        high: float | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """z -> the mean of p(x|z), in [0,1] or in a scanner's unit.

        low, high: of "scanner", the intensities inside a brain that are 0 and 1 to the model, its
        percentiles `prepare_keys["lower_percentile"]` and `["upper_percentile"]`; a dark surround
        stays 0. Raises ValueError for another shape, or if low and high are no such pair.
        """
        self._check(latent, (self.latent_size,), "latents")
        image = self.vae.decode(latent)
        if intensities == "unit":
            return image
        if low is None or high is None:
            raise ValueError(
                "low and high are missing: the intensities that the model has as 0 and 1"
            )
        return to_scanner(image, low, high)

    def encode(self, image: Float[Tensor, "B C H W"]) -> Posterior:
        """x -> the posterior, each draw's given the means of those before it.

        Its mean is the latent to reconstruct with. Raises ValueError for another shape.
        """
        self._check(image, self.image_shape, "images")
        return self.vae.encode(image)

    def up_to(self, latent: Float[Tensor, "B L"], side: int) -> Float[Tensor, "B L"]:
        """z without what levels finer than `side` add: their draws are their prior's means.

        Decoded it is the image as far as its coarse levels know it: a lesion that the finest levels
        would draw is not in it. Raises ValueError if no level is that coarse.
        """
        self._check(latent, (self.latent_size,), "latents")
        decoder = self.vae.decoder
        sides = [level for _, level, _ in decoder.draws_of]
        if min(sides) > side:
            raise ValueError(f"the coarsest level has side {min(sides)}, none {side} or less")
        parts = latent.split(decoder.sizes, dim=1)
        kept = [p if s <= side else torch.zeros_like(p) for p, s in zip(parts, sides, strict=True)]
        return torch.cat(kept, dim=1)

    def kernel(self, latent: Float[Tensor, "B L"]) -> Float[Tensor, "B 1 s s"] | None:
        """z -> the kernel by which the model blurs, sum 1; None without a network."""
        if self.kernel_network is None:
            return None
        self._check(latent, (self.latent_size,), "latents")
        return self.kernel_network(latent)

    def precision(self, latent: Float[Tensor, "B L"]) -> Float[Tensor, "B 1 H half_W"]:
        """z -> λ of the term's law, in rfft2's layout, without unit.

        Ones for gaussian. log N(x; decode(z), σ²C) is −gaussian_nll(x − decode(z), λ, σ) for every
        term that has a λ. Raises InputError for a term that has none.
        """
        law = self._term_law(latent)
        if isinstance(law, GaussianLaw):
            return law.precision.expand(len(latent), -1, -1, -1)
        raise InputError(
            f"the likelihood {self.term} has no precision spectrum: use a decoder that was trained "
            "under likelihood.term blur, gaussian or fourier_gaussian"
        )

    @property
    def scale(self) -> float:
        """The scale of the term's law, intensity units; InputError if the term is no density.

        σ of a Gaussian, for fourier_gaussian the root of its mean variance; b of laplace; c of
        robust, the mean over channels.
        """
        density = self._likelihood()
        if isinstance(density, Robust):
            return float(density.log_scale.exp().mean())
        law = density.law(None)
        if isinstance(law, LaplaceLaw):
            return float(law.scale)
        assert isinstance(law, GaussianLaw)
        return float(law.deviation)

    def law(
        self, latent: Float[Tensor, "B L"], decoded: Float[Tensor, "B C H W"] | None = None
    ) -> Law:
        """z -> the law of x − decode(z), by `which`. Raises InputError if there is none.

        decoded: decode(z), if it was computed before.
        """
        if self.which == "term":
            if (law := self._term_law(latent)) is not None:
                return law
            raise InputError(
                f"the likelihood {self.term} has no interval in closed form: use a decoder "
                "with a fitted law (likelihood.residual fitted)"
            )
        if self.residual is None:
            raise InputError(
                "this package has no fitted law of its residuals: export it again from a run with "
                "likelihood.residual fitted, or use the law of its term"
            )
        return self.residual(self.decode(latent) if decoded is None else decoded)

    def standard_deviation(self, latent: Float[Tensor, "B L"]) -> Float[Tensor, "B C H W"]:
        """z -> the standard deviation of each pixel of p(x|z), intensity units.

        How far an image lies from decode(z), z known; InputError if `law` raises it.
        """
        return self.law(latent).standard_deviation(torch.Size((len(latent), *self.image_shape)))

    def log_likelihood(
        self, image: Float[Tensor, "B C H W"], latent: Float[Tensor, "B L"]
    ) -> Float[Tensor, " B"]:
        """log p(x|z) of each image, nats, exact, every constant included.

        Differentiable in x and z, through the kernel and the deviations too. Under the fitted law
        it depends on the floor of its deviations, `metadata["residual"]["floor"]`: compare only
        with the same. Raises InputError if the term is no density and no law was fitted.
        """
        self._check(image, self.image_shape, "images")
        if self.which == "fitted":
            decoded = self.decode(latent)
            return -self.law(latent, decoded).nll(image - decoded)
        density = self._likelihood()
        return -density(image, self.decode(latent), self._transfer(latent)).value

    def log_prior(self, latent: Float[Tensor, "B L"]) -> Float[Tensor, " B"]:
        """log N(z; 0, I) of each latent, nats."""
        self._check(latent, (self.latent_size,), "latents")
        return -0.5 * (latent.square().sum(dim=1) + self.latent_size * math.log(2 * math.pi))

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator | None = None, *, noise: bool = False
    ) -> Float[Tensor, "count C H W"]:
        """Images of latents from the prior; the generator is on this device.

        The prior is the one that was fitted to the training images' latents, `self.prior`, where
        the package has it, else N(0,I). With `noise` a residual drawn from `law` is added, which
        may leave [0,1]; InputError if that is no Gaussian.
        """
        drawn = self.vae.prior_latents if self.prior is None else self.prior.sample
        latent = drawn(count, generator)
        image = self.decode(latent)
        if not noise:
            return image
        law = self.law(latent, image)
        if not isinstance(law, GaussianLaw):
            raise InputError(f"residuals are drawn from Gaussians alone, not from {self.term}")
        return image + law.sample(image.shape, generator)

    def trained_on(self, **who: str) -> bool:
        """True where this `subject`, `family` or file (`source_sha256`) was trained on."""
        return self._among(self.metadata["trained_on"], who)

    def fitted_on(self, **who: str) -> bool:
        """True where the checkpoint was chosen, and the law of residuals fitted, by this `subject`,
        `family` or file (`source_sha256`)."""
        return self._among(self.metadata.get("fitted_on") or {}, who)

    @staticmethod
    def _among(known: dict[str, Any], who: dict[str, str]) -> bool:
        return any(
            (value if key == "source_sha256" else hashed(value)) in known.get(key, ())
            for key, value in who.items()
        )

    def _likelihood(self) -> ReconstructionTerm:
        if self.density is None:
            raise InputError(
                f"the reconstruction term {self.term} is no likelihood: use a decoder that was "
                f"trained under likelihood.term {', '.join(DENSITIES)}"
            )
        return self.density

    def _transfer(self, latent: Tensor) -> Tensor | None:
        return transfer_of(self.kernel(latent), self.image_shape)

    def _term_law(self, latent: Tensor) -> Law | None:
        self._check(latent, (self.latent_size,), "latents")
        return self._likelihood().law(self._transfer(latent))

    @staticmethod
    def _check(values: Tensor, shape: tuple[int, ...], what: str) -> None:
        if tuple(values.shape[1:]) != shape:
            wanted = ", ".join(map(str, shape))
            raise ValueError(f"{what} must be (B, {wanted}), not {tuple(values.shape)}")
