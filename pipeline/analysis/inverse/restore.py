"""Restore slices of a known degradation under a decoder's prior: denoise, deblur, super-resolve.

python -m pipeline restore --package DIR --store STORE --noise 0.1    subjects of a store, scored
python -m pipeline restore --package DIR --image x.nii.gz --factor 2  a degraded slice
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.analysis.geometry import finer_affine, intensity_unit, read_picture
from pipeline.analysis.inverse.operators import (
    Composed,
    Downsampling,
    GaussianBlur,
    Operator,
    complex_noise,
)
from pipeline.analysis.inverse.options import Slice, StudyOptions, Task, carry_out
from pipeline.analysis.inverse.problem import Problem
from pipeline.analysis.packages import open_prior
from pipeline.decoder_package import DecoderPackage
from pipeline.errors import InputError

TASK = Task("restore", "Restoration", "degraded", "restorations", weight=0.01)


@dataclass(frozen=True)
class Options(StudyOptions):
    """What is restored, from which degradation, with which decoder."""

    image: str = ""
    """A NIfTI file of one slice that is degraded already."""
    blur: float = 0.0
    """Standard deviation of the Gaussian blur, pixels of the restored image; 0 = none."""
    factor: int = 1
    """How many pixels of the restored image one of the degraded spans, along each side."""
    noise: float = 0.1
    """Standard deviation of the noise, in intensities of [0,1]."""
    output: str = ""
    """Folder of the results; "" = WORK/restorations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.store) == bool(self.image):
            raise ValueError("give one of --store and --image")


def degradation(blur: float, factor: int, shape: tuple[int, int]) -> Operator:
    """Blur, then pixels `factor` times larger. Raises InputError where the factor does not fit."""
    try:
        return Composed(GaussianBlur(blur, shape), Downsampling(factor, shape))
    except ValueError as error:
        raise InputError(str(error)) from error


def run(options: Options) -> None:
    """The command. Raises InputError, in one line, where the inputs do not fit each other."""
    package = open_prior(options.package, options.law)
    height, width = package.image_shape[1:]
    operator = degradation(options.blur, options.factor, (height, width))
    carry_out(
        TASK,
        options,
        package,
        lambda image, number: degraded(image, number, operator, options),
        lambda: _read(options, operator, package),
        f"noise {options.noise:g}, blur {options.blur:g}, factor {options.factor}",
    )


def _read(options: Options, operator: Operator, package: DecoderPackage) -> Slice:
    channels, height, width = package.image_shape
    if channels != 1:
        raise InputError(f"the decoder draws {channels} channels, a NIfTI slice has one")
    picture = read_picture(
        Path(options.image), package.orientation, package.spacing_mm * options.factor
    )
    wanted = (height // options.factor, width // options.factor)
    if picture.image.shape != wanted:
        raise InputError(
            f"{options.image} is {picture.image.shape[0]}x{picture.image.shape[1]} pixels, and "
            f"with factor {options.factor} must be {wanted[0]}x{wanted[1]}: crop or pad it"
        )
    unit = intensity_unit(picture.image, options.scale)
    measured = torch.from_numpy(picture.image / unit).float()[None, None]
    problem = Problem(operator, measured, options.noise, _enlarged(measured, (height, width)))
    affine = finer_affine(picture.affine, options.factor)
    return Slice(Path(options.image).name, picture, affine, problem, unit)


def degraded(image: Tensor, number: int, operator: Operator, options: Options) -> Problem:
    """Images (B,C,H,W) in [0,1] degraded; number: the subject's, which decides the noise."""
    clean = operator.forward(image)
    generator = torch.Generator().manual_seed(2 * abs(number) + (number < 0) + 1000 * options.seed)
    measured = clean + complex_noise(clean, options.noise, generator)
    simple = _enlarged(measured, (image.shape[-2], image.shape[-1]))
    return Problem(operator, measured, options.noise, simple, image)


def _enlarged(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Bicubic interpolation to (H,W): the image without a prior."""
    if image.shape[-2:] == shape:
        return image
    return torch.nn.functional.interpolate(image, shape, mode="bicubic", align_corners=False)
