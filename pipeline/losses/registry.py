"""From a term's name to the term."""

from pipeline.losses.base import ReconstructionTerm
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.densities import Blur, FourierGaussian, Gaussian, Laplace, Robust
from pipeline.losses.distances import FocalFrequency, MultiScaleSsim, Ssim
from pipeline.losses.law import Shape
from pipeline.losses.vgg import Vgg
from pipeline.losses.watson_dft import WatsonDft

TERMS: dict[str, type[ReconstructionTerm]] = {
    "blur": Blur,
    "focal_frequency": FocalFrequency,
    "fourier_gaussian": FourierGaussian,
    "gaussian": Gaussian,
    "laplace": Laplace,
    "ms_ssim": MultiScaleSsim,
    "robust": Robust,
    "ssim": Ssim,
    "vgg": Vgg,
    "watson_dft": WatsonDft,
}


def build_term(config: LikelihoodConfig, image_shape: Shape) -> ReconstructionTerm:
    """The reconstruction term that likelihood.term names.

    Args:
        config: the `likelihood` section.
        image_shape: (C,H,W).

    Returns:
        A module of images and reconstructions; `value` of its result has a number for each image.

    Raises:
        ValueError: there is no such term, or the images do not suit it.
        InputError: the weights that it needs are not found.

    Example:
        >>> term = build_term(LikelihoodConfig(term="laplace", scale=0.1), (1, 32, 32))
        >>> term(torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32)).value.shape
        torch.Size([2])
    """
    if config.term not in TERMS:
        raise ValueError(f"likelihood.term must be one of {', '.join(TERMS)}, not {config.term!r}")
    return TERMS[config.term](config, image_shape)
