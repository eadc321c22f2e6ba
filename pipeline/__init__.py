"""Train and evaluate blur-minimising variational autoencoders on prepared stores.

The names below are the face of the package, each loaded when it is first used: `import pipeline`
takes no time, and what needs torch waits for it.

    >>> import torch
    >>> from pipeline import LikelihoodConfig, build_term
    >>> term = build_term(LikelihoodConfig(term="gaussian", scale=0.1), (1, 8, 8))
    >>> image, reconstruction = torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), 0.1)
    >>> [round(nats, 2) for nats in term(image, reconstruction).value.tolist()]
    [-56.55, -56.55]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.analysis.inverse.masks import cartesian_mask
    from pipeline.analysis.inverse.operators import MaskedFourier
    from pipeline.analysis.inverse.solver import SolverSettings, solve
    from pipeline.analysis.packages import open_package
    from pipeline.blur.kernel_loss import kernel_loss
    from pipeline.blur.likelihood import gaussian_nll
    from pipeline.blur.spectrum import precision, transfer_function
    from pipeline.config import Config
    from pipeline.data.slices import SliceDataset, open_store
    from pipeline.decoder_package.package import DecoderPackage
    from pipeline.errors import InputError
    from pipeline.losses.config import LikelihoodConfig
    from pipeline.losses.registry import build_term
    from pipeline.metrics.fidelity import psnr, ssim
    from pipeline.metrics.perceptual import PerceptualDistance
    from pipeline.metrics.sharpness import blur_effect, high_frequency_ratio
    from pipeline.models.config import Level, ModelConfig
    from pipeline.models.vae import VAE
    from pipeline.parsing import load_config

_HOMES = {
    "config": "Config",
    "parsing": "load_config",
    "errors": "InputError",
    "data.slices": "SliceDataset open_store",
    "blur.spectrum": "precision transfer_function",
    "blur.likelihood": "gaussian_nll",
    "blur.kernel_loss": "kernel_loss",
    "losses.config": "LikelihoodConfig",
    "losses.registry": "build_term",
    "models.config": "Level ModelConfig",
    "models.vae": "VAE",
    "metrics.fidelity": "psnr ssim",
    "metrics.sharpness": "blur_effect high_frequency_ratio",
    "metrics.perceptual": "PerceptualDistance",
    "decoder_package.package": "DecoderPackage",
    "analysis.packages": "open_package",
    "analysis.inverse.masks": "cartesian_mask",
    "analysis.inverse.operators": "MaskedFourier",
    "analysis.inverse.solver": "SolverSettings solve",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "VAE",
    "Config",
    "DecoderPackage",
    "InputError",
    "Level",
    "LikelihoodConfig",
    "MaskedFourier",
    "ModelConfig",
    "PerceptualDistance",
    "SliceDataset",
    "SolverSettings",
    "blur_effect",
    "build_term",
    "cartesian_mask",
    "gaussian_nll",
    "high_frequency_ratio",
    "kernel_loss",
    "load_config",
    "open_package",
    "open_store",
    "precision",
    "psnr",
    "solve",
    "ssim",
    "transfer_function",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
