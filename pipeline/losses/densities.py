"""Densities: terms whose value is a negative log-likelihood in nats, every constant included."""

import math
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from pipeline.blur.likelihood import log_determinant, nll, optimal_scale, quadratic_form
from pipeline.blur.spectrum import RadialBins, half_spectrum, power, precision
from pipeline.losses.base import Distortion, ReconstructionTerm, Scale
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import (
    GaussianLaw,
    Images,
    LaplaceLaw,
    Law,
    PerImage,
    Precision,
    Shape,
    Transfer,
)

# Least power of a radial bin, intensity².
LEAST_POWER = 1e-12
# α stays this far from 0 and 2, where the formula of ρ has removable singularities.
MARGIN = 1e-3
START = 0.1
# Nodes of the quadrature: t in steps of 1/32 to ±4, so |x| to 2e18 behind the heaviest tail.
_T = torch.arange(-128, 129, dtype=torch.float64) / 32


class Gaussian(ReconstructionTerm):
    """−log N(x; x̂, σ²I) = ‖x − x̂‖²/(2σ²) + D log σ + (D/2) log 2π, nats.

    L2 with a scale: σ-VAE (Rybkin et al. 2021).
    """

    density: ClassVar[bool] = True

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        super().__init__(config, image_shape)
        self.scale = Scale(config.scale)
        _, self.height, self.width = image_shape

    def law(self, transfer: Transfer) -> Law:
        scale = self.scale.trained()
        return GaussianLaw(scale, scale.new_ones((1, 1, self.height, self.width // 2 + 1)))

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        return self.distortion((image - reconstruction).square().sum(dim=(1, 2, 3)))

    def distortion(self, quadratic: PerImage, logarithm: PerImage | float = 0.0) -> Distortion:
        """From the residual's quadratic form and the precision's log-determinant."""
        scale = self.scale(optimal_scale(quadratic, self.values))
        return Distortion(nll(quadratic, logarithm, self.values, scale), scale)


class Blur(Gaussian):
    """−log N(x; x̂, σ²Σ_k), Σ_k⁻¹ circulant with the precision spectrum of the kernel, nats.

    The blur-minimising likelihood (Bredell et al. 2023). Without a kernel, as in the warm-up, it is
    the plain Gaussian.
    """

    needs_kernel: ClassVar[bool] = True

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        super().__init__(config, image_shape)
        self.constant = config.constant
        self.form = config.form

    def law(self, transfer: Transfer) -> Law:
        if transfer is None:
            return super().law(transfer)
        return GaussianLaw(self.scale.trained(), self.precision(transfer))

    def precision(self, transfer: Complex[Tensor, "B 1 H half_W"]) -> Precision:
        """λ by the kernels' transfer functions."""
        return precision(transfer, self.constant, self.form)

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        if transfer is None:
            return super().compare(image, reconstruction, transfer)
        channels, height, width = image.shape[1:]
        weights = self.precision(transfer)
        spectrum = half_spectrum(image - reconstruction)
        quadratic = quadratic_form(spectrum, weights, width)
        logarithm = log_determinant(weights, (channels, height, width))
        return replace(self.distortion(quadratic, logarithm), spectrum=spectrum)


class FourierGaussian(ReconstructionTerm):
    """−log N(x; x̂, Σ), Σ circulant, one variance a radial frequency bin: the best such Σ, nats.

    ½ Σ_ω (|E|²/v_r(ω) + log v_r(ω)) + D/2 log 2π over all frequencies, E the residual's orthonormal
    transform, r its distance from the origin, rounded, in steps of 1/max(H,W) cycles/pixel. The
    optimum v_r is the mean of |E|² over the batch, the channels and the bin: σ-VAE (Rybkin,
    Daniilidis, Levine, Simple and Effective VAE Training with Calibrated Decoders, ICML 2021, arXiv
    2006.13202) with a σ for each bin.
    """

    density: ClassVar[bool] = True

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        super().__init__(config, image_shape)
        if config.scale != "optimal":
            raise ValueError(
                "likelihood.scale must be optimal for likelihood.term fourier_gaussian, whose "
                f"variances are all fitted, not {config.scale}"
            )
        self.shape = image_shape
        self.bins = RadialBins(*image_shape[1:])
        self.scale = Scale("optimal", shape=(len(self.bins),))

    def law(self, transfer: Transfer) -> Law:
        """σ is the root of the mean variance, λ = σ²/v: without unit, as every precision."""
        variances = self.scale.trained().square()
        mean = self.bins.average(variances)
        return GaussianLaw(mean.sqrt(), self.bins.spread(mean / variances))

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        spectrum = half_spectrum(image - reconstruction)
        variances = self.bins.mean(power(spectrum.detach())).clamp_min(LEAST_POWER)
        scale = self.scale(variances.sqrt())
        precision = self.bins.spread(scale.square().reciprocal())
        quadratic = quadratic_form(spectrum, precision, self.shape[-1])
        value = nll(quadratic, log_determinant(precision, self.shape), self.values, 1.0)
        return Distortion(value, self.bins.average(scale.square()).sqrt(), spectrum)


class Laplace(ReconstructionTerm):
    """−log Π 1/(2b) exp(−|x − x̂|/b) = ‖x − x̂‖₁/b + D log 2b, nats: L1 with a scale.

    Laplace 1774; the optimal b is the mean of |x − x̂| over the batch, as the optimal σ of a
    Gaussian is its root mean square (σ-VAE, Rybkin et al. 2021, arXiv 2006.13202).
    """

    density: ClassVar[bool] = True

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        super().__init__(config, image_shape)
        self.scale = Scale(config.scale, power=1)

    def law(self, transfer: Transfer) -> Law:
        return LaplaceLaw(self.scale.trained())

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        absolute = (image - reconstruction).abs().sum(dim=(1, 2, 3))
        optimal = (absolute.detach().mean() / self.values).clamp_min(1e-6)
        scale = self.scale(optimal)
        return Distortion(absolute / scale + self.values * (math.log(2) + scale.log()), scale)


def rho(error: Float[Tensor, "..."], shape: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """ρ(x, α) = (|α−2|/α) ((x²/|α−2| + 1)^(α/2) − 1) for 0 < α < 2, element by element."""
    rest = 2 - shape
    # (1 + y)^p − 1 by expm1 and log1p: exact for small α and small errors in float32, too.
    return rest / shape * torch.expm1(shape / 2 * torch.log1p(error.square() / rest))


def log_partition(shape: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """log Z(α), Z(α) = ∫ exp(−ρ(x, α)) dx over the real line; float64, differentiable.

    Double-exponential quadrature (Takahasi, Mori 1974): x = sinh(π/2 · sinh t), trapezoids in t.
    """
    t = _T.to(shape.device)
    node = torch.sinh(math.pi / 2 * torch.sinh(t))
    weight = math.pi / 2 * torch.cosh(t) * torch.cosh(math.pi / 2 * torch.sinh(t)) / 32
    exponent = weight.log() - rho(node, shape.double()[..., None])
    return exponent.logsumexp(dim=-1)


class Robust(ReconstructionTerm):
    """−log Π 1/(c Z(α)) exp(−ρ(e/c, α)) = Σ ρ(e/c, α) + D log c + D log Z(α), nats; e = x − x̂.

    ρ is near a square for |e| < c, and beyond it grows as its shape α says: α = 2 is the Gaussian,
    1 is Charbonnier's smooth L1, 0 is Cauchy's. α in (0,2) is learned with the VAE, one for each
    image channel, and so is the scale c, unless `likelihood.scale` fixes it. Barron, A General and
    Adaptive Robust Loss Function, CVPR 2019, arXiv 1701.03077, in pixel space.
    """

    density: ClassVar[bool] = True
    log_scale: Float[Tensor, " C"]

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        super().__init__(config, image_shape)
        channels = image_shape[0]
        start = START if config.scale == "optimal" else float(config.scale)
        log_scale = torch.full((channels,), math.log(start))
        if config.scale == "optimal":
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.logit = nn.Parameter(torch.zeros(channels))

    @property
    def shape(self) -> Float[Tensor, " C"]:
        """α of each channel."""
        return MARGIN + (2 - 2 * MARGIN) * self.logit.sigmoid()

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        scale, shape = self.log_scale.exp(), self.shape
        error = (image - reconstruction) / scale[:, None, None]
        distance = rho(error, shape[:, None, None]).sum(dim=(1, 2, 3))
        constant = self.log_scale + log_partition(shape).to(scale.dtype)
        normaliser = self.values / len(scale) * constant.sum()
        return Distortion(distance + normaliser, scale.detach().mean())
