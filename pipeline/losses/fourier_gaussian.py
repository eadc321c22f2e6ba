"""The Gaussian whose stationary covariance all images share."""

from typing import ClassVar

from pipeline.blur.likelihood import log_determinant, nll, quadratic_form
from pipeline.blur.radial import RadialBins
from pipeline.blur.spectrum import half_spectrum, power
from pipeline.losses.base import Distortion, ReconstructionTerm, Scale
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import GaussianLaw, Law
from pipeline.losses.shapes import Images, Shape, Transfer

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

    @property
    def has_scale(self) -> bool:
        return self.scale.is_set

    def law(self, transfer: Transfer) -> Law:
        """σ is the root of the mean variance, λ = σ²/v: without unit, as every precision."""
        variances = self.scale.trained().square()
        mean = self.bins.average(variances)
        return GaussianLaw(mean.sqrt(), self.bins.spread(mean / variances))

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        width = self.shape[-1]
        spectrum = half_spectrum(image - reconstruction)
        variances = self.bins.mean(power(spectrum.detach())).clamp_min(LEAST_POWER)
        scale = self.scale(variances.sqrt())
        precision = self.bins.spread(scale.square().reciprocal())
        value = nll(
            quadratic_form(spectrum, precision, width),
            log_determinant(precision, self.shape),
            self.values,
            1.0,
        )
        overall = self.bins.average(scale.square()).sqrt()
        return Distortion(value, overall, spectrum)
