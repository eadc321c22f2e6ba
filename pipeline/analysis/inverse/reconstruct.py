"""Reconstruct undersampled MR images under a decoder's prior, beside zero filling and TV.

python -m pipeline reconstruct --package DIR --store STORE             subjects of a store, scored
python -m pipeline reconstruct --package DIR --image x.nii.gz          one slice, undersampled here
python -m pipeline reconstruct --package DIR --kspace k.npy --like x.nii.gz --mask m.npy
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.analysis.geometry import Picture, intensity_unit, read_array, read_picture
from pipeline.analysis.inverse.fourier import ifft2c
from pipeline.analysis.inverse.masks import Kind, cartesian_mask, sampled_centre
from pipeline.analysis.inverse.operators import (
    MaskedFourier,
    complex_noise,
    smooth_phase,
    smooth_sensitivities,
)
from pipeline.analysis.inverse.options import Slice, StudyOptions, Task, carry_out
from pipeline.analysis.inverse.problem import Problem
from pipeline.analysis.packages import open_prior
from pipeline.decoder_package import DecoderPackage
from pipeline.errors import InputError

TASK = Task("reconstruct", "Reconstruction", "zero filling", "reconstructions", weight=0.003)


@dataclass(frozen=True)
class Options(StudyOptions):
    """What is reconstructed, from which samples, with which decoder."""

    image: str = ""
    """A NIfTI file of one fully sampled slice, undersampled here and scored."""
    kspace: str = ""
    """A .npy file of measured k-space, complex (H,W) or (coils,H,W), centred, rows A>P."""
    like: str = ""
    """NIfTI file of one slice whose affine and axes the picture of --kspace has."""
    sensitivities: str = ""
    """A .npy file of coil sensitivities, complex (coils,H,W); needed with several coils."""
    mask: str = ""
    """The samples, (H,W) of 0 and 1, .npy or NIfTI; "" = drawn (of --kspace: where it is not 0)."""
    kind: Kind = "variable_density"
    """Of a drawn mask: columns at random, denser in the centre, or equally spaced."""
    acceleration: float = 4.0
    """Of a drawn mask: all columns over those measured, 2 to 8."""
    centre_fraction: float = 0.08
    """Of a drawn mask: the share of columns about the lowest frequency that are all measured."""
    coils: int = 1
    """Coils that are simulated where no sensitivities are given."""
    noise: float = 0.01
    """Standard deviation of the noise in real and imaginary part, in intensities of [0,1]."""
    phase: Literal["centre", "none"] = "centre"
    """The image's phase: from the fully sampled centre, or none. Of --store and --image as well
    where they get one."""
    simulated_phase: float = 0.0
    """Of --store and --image: the largest phase, radians, that the object gets, smoothly."""
    output: str = ""
    """Folder of the results; "" = WORK/reconstructions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(map(bool, (self.store, self.image, self.kspace))) != 1:
            raise ValueError("give one of --store, --image and --kspace")
        if self.kspace and not self.like:
            raise ValueError(
                "k-space has no affine: give --like x.nii.gz, a slice of the same place"
            )
        if not 2 <= self.acceleration <= 8:
            raise ValueError(f"acceleration must lie between 2 and 8, not {self.acceleration:g}")
        if self.coils < 1:
            raise ValueError(f"coils must be at least 1, not {self.coils}")


def run(options: Options) -> None:
    """The command. Raises InputError, in one line, where the inputs do not fit each other."""
    package = open_prior(options.package, options.law)
    _check_acceleration(options, package)
    read = _from_image if options.image else _from_kspace
    carry_out(
        TASK,
        options,
        package,
        lambda image, number: undersampled(image, number, options),
        lambda: read(options, package),
        "samples of a file" if options.mask or options.kspace
        else f"acceleration {options.acceleration:g}",
    )  # fmt: skip


def _check_acceleration(options: Options, package: DecoderPackage) -> None:
    """Raise InputError before any work where no mask of the options exists."""
    try:
        if not options.mask and not options.kspace:
            _drawn_mask(package.image_shape[1:], options, 0)
    except ValueError as error:
        raise InputError(str(error)) from error
    if package.image_shape[0] != 1:
        raise InputError(f"the decoder draws {package.image_shape[0]} channels: MR images have one")


def _drawn_mask(shape: tuple[int, int], options: Options, number: int) -> Tensor:
    seed = (options.seed, 0 if number >= 0 else 1, abs(number))  # another for each subject
    return cartesian_mask(shape, options.acceleration, options.centre_fraction, options.kind, seed)


def undersampled(image: Tensor, number: int, options: Options) -> Problem:
    """What a scanner would have measured of images, and their zero filling.

    Args:
        image: (B,1,H,W) in [0,1].
        number: the subject's, which decides a drawn mask and the noise.
        options: of the command.

    Raises:
        InputError: a given mask or sensitivities do not fit.
    """
    height, width = image.shape[-2:]
    mask = _drawn_mask((height, width), options, number) if not options.mask else None
    if mask is None:
        mask = read_mask(Path(options.mask), (height, width))
    maps = _sensitivities(options, (height, width))
    phase = smooth_phase((height, width), options.simulated_phase)
    clean = MaskedFourier(mask, maps * torch.polar(torch.ones_like(phase), phase)).forward(image)
    generator = torch.Generator().manual_seed(2 * abs(number) + (number < 0) + 1000 * options.seed)
    measured = clean + mask * complex_noise(clean, options.noise, generator)
    if options.simulated_phase and options.phase == "centre":
        maps = with_phase(maps, measured, mask)
    operator = MaskedFourier(mask, maps)
    return Problem(operator, measured, options.noise, operator.adjoint(measured), image, mask)


def _sensitivities(options: Options, shape: tuple[int, int]) -> Tensor:
    if not options.sensitivities:
        return smooth_sensitivities(options.coils, shape)
    path = Path(options.sensitivities)
    found = read_array(path)
    if found.ndim != 3 or found.shape[1:] != shape:
        raise InputError(f"{path} must hold sensitivities (coils,{shape[0]},{shape[1]}), "
                         f"not {found.shape}")  # fmt: skip
    _check_finite(found, path)
    return torch.from_numpy(found.astype(np.complex64))


def read_mask(path: Path, shape: tuple[int, int]) -> Tensor:
    """A mask (H,W) of 0 and 1 as float32. Raises InputError where it is something else."""
    found = np.squeeze(read_array(path))
    if found.shape != shape:
        raise InputError(f"mask {path} is {'x'.join(map(str, found.shape))}, the image "
                         f"{shape[0]}x{shape[1]}: they must have one shape")  # fmt: skip
    if not np.isin(found, (0, 1)).all() or not found.any():
        raise InputError(f"mask {path} must hold 0 and 1, and some 1")
    return torch.from_numpy(found.astype(np.float32))


def _check_finite(values: np.ndarray, path: Path) -> None:
    if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
        raise InputError(f"{path} has values that are not finite numbers")


def check_size(picture: Picture, package: DecoderPackage, path: str) -> None:
    """Raise InputError where a picture has another size than the decoder draws."""
    if picture.image.shape != tuple(package.image_shape[1:]):
        height, width = package.image_shape[1:]
        raise InputError(
            f"{path} is {picture.image.shape[0]}x{picture.image.shape[1]} pixels, the decoder "
            f"draws {height}x{width}: crop, pad or resample it"
        )


def _from_image(options: Options, package: DecoderPackage) -> Slice:
    picture = read_picture(Path(options.image), package.orientation, package.spacing_mm)
    check_size(picture, package, options.image)
    unit = intensity_unit(picture.image, options.scale)
    image = torch.from_numpy((picture.image / unit).clip(0, 1)).float()[None, None]
    problem = undersampled(image, 0, options)
    return Slice(Path(options.image).name, picture, picture.affine, problem, unit)


def _from_kspace(options: Options, package: DecoderPackage) -> Slice:
    path, shape = Path(options.kspace), tuple(package.image_shape[1:])
    found = read_array(path)
    if found.ndim == 2:
        found = found[None]
    if found.ndim != 3 or found.shape[1:] != shape:
        raise InputError(f"{path} must hold k-space of (coils,{shape[0]},{shape[1]}), "
                         f"not {found.shape}")  # fmt: skip
    if not np.iscomplexobj(found):
        raise InputError(f"{path} holds {found.dtype}, not complex numbers")
    _check_finite(found, path)
    picture = read_picture(Path(options.like), package.orientation, package.spacing_mm)
    check_size(picture, package, options.like)
    if len(found) > 1 and not options.sensitivities:
        raise InputError(f"{path} is of {len(found)} coils: give --sensitivities s.npy")
    height, width = shape
    maps = _sensitivities(replace(options, coils=1), (height, width))
    if len(maps) != len(found):
        raise InputError(f"{path} is of {len(found)} coils, {options.sensitivities} of {len(maps)}")
    kspace = torch.from_numpy(found.astype(np.complex64))[None]
    mask = (kspace[0].abs().sum(dim=0) > 0).float()
    if options.mask:
        mask = read_mask(Path(options.mask), (height, width))
    if not mask.any():
        raise InputError(f"{path} is 0 everywhere")
    if options.phase == "centre":
        maps = with_phase(maps, kspace, mask)
    operator = MaskedFourier(mask, maps)
    unit = intensity_unit(operator.adjoint(kspace)[0, 0].numpy(), options.scale)
    measured = mask * kspace / unit
    problem = Problem(operator, measured, options.noise, operator.adjoint(measured), None, mask)
    return Slice(path.name, picture, picture.affine, problem, unit)


def with_phase(maps: Tensor, kspace: Tensor, mask: Tensor) -> Tensor:
    """Sensitivities times each image's phase, as far as the fully sampled centre shows it.

    maps (coils,H,W); kspace (B,coils,H,W); mask (H,W) -> (B,coils,H,W). The centre is tapered by
    Hann's window. Raises InputError with fewer than 3 whole columns there, which show no phase.
    """
    band, (height, width) = sampled_centre(mask), mask.shape
    if band < 3:
        raise InputError(
            f"the mask has {band} whole columns about the centre, too few to see the image's "
            "phase: give k-space whose image has none, and --phase none"
        )
    window = torch.zeros(height, width)
    start = width // 2 - band // 2
    window[:, start : start + band] = torch.hann_window(band + 2, periodic=False)[1:-1]
    rough = (maps.conj() * ifft2c(window * kspace)).sum(dim=1, keepdim=True)
    return maps * torch.polar(torch.ones_like(rough.real), rough.angle())
