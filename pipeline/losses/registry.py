"""From a term's name to the term."""

from pipeline.losses.base import ReconstructionTerm, Shape
from pipeline.losses.blur import Blur
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.focal_frequency import FocalFrequency
from pipeline.losses.fourier_gaussian import FourierGaussian
from pipeline.losses.gaussian import Gaussian
from pipeline.losses.laplace import Laplace
from pipeline.losses.ms_ssim import MultiScaleSsim
from pipeline.losses.robust import Robust
from pipeline.losses.ssim import Ssim
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
    """The term that likelihood.term names, for images (C,H,W).

    Raises ValueError, naming all, for another name, and where the images do not suit the term;
    InputError where weights that it needs are not there.
    """
    if config.term not in TERMS:
        raise ValueError(f"likelihood.term must be one of {', '.join(TERMS)}, not {config.term!r}")
    return TERMS[config.term](config, image_shape)
