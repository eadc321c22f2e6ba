"""Reconstruct undersampled MR images under a decoder's prior, beside zero filling and TV.

python -m pipeline reconstruct --package DIR --store STORE             people of a store, scored
python -m pipeline reconstruct --package DIR --image x.nii.gz          one slice, undersampled here
python -m pipeline reconstruct --package DIR --kspace k.npy --like x.nii.gz --mask m.npy
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.analysis.fourier import ifft2c
from pipeline.analysis.geometry import Picture, read_array, read_picture, write_picture
from pipeline.analysis.inverse import SolverSettings
from pipeline.analysis.masks import Kind, cartesian_mask, sampled_centre
from pipeline.analysis.operators import (
    MaskedFourier,
    complex_noise,
    smooth_phase,
    smooth_sensitivities,
)
from pipeline.analysis.results import begin
from pipeline.analysis.study import (
    IMAGE,
    TV,
    WAVELETS,
    Choice,
    Problem,
    Simulation,
    describe,
    files_of,
    open_prior,
    options_record,
    package_record,
    people,
    run_simulation,
    solve_case,
    write_figure,
    write_scores,
)
from pipeline.data.slices import open_store
from pipeline.decoder_package import DecoderPackage
from pipeline.errors import InputError
from pipeline.files import work_folder
from pipeline.progress import Reporter

ZERO_FILLING = "zero filling"
# Of --image and --kspace, where nobody is there to choose it by: the choice on OASIS at 4-fold.
USUAL_WEIGHT = 0.003


@dataclass(frozen=True)
class Options:
    """What is reconstructed, from which samples, with which decoder."""

    package: str = ""
    """Decoder package: a folder, a name under WORK/packages, or an address in MLflow."""
    store: str = ""
    """A prepared store, whose slices are undersampled here and scored."""
    split: Literal["validation", "test", "all"] = "test"
    """Whose slices of the store."""
    subject: str = ""
    """One subject of the store in place of a split."""
    slices: int = 4
    """Slices a person, evenly spaced about the middle; 0 = all."""
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
    scale: float = 0.0
    """Of --image and --kspace: what is intensity 1; 0 = the 99.5th percentile within the head."""
    tv_weight: float | None = None
    """Weight of total variation; null = the best SSIM on validation people (0.003 without)."""
    wavelet_weight: float | None = None
    """Weight of the wavelets' details, likewise."""
    latent_steps: int = 80
    """Steps of the latent phase, for each restart."""
    image_steps: int = 60
    """Steps of the image phase."""
    restarts: int = 1
    """Starts of the latent phase: the encoder of zero filling, then draws from the prior."""
    samples: int = 8
    """Draws from the posterior, for a standard deviation of each pixel; 0 = none."""
    law: Choice = "best"
    """The law of the decoder's residuals: fitted, term, or best: fitted where there is one."""
    support: bool = False
    """Keep the image to where the decoder draws tissue."""
    seed: int = 0
    """Of masks, noise and restarts."""
    output: str = ""
    """Folder of the results; "" = WORK/reconstructions."""

    def __post_init__(self) -> None:
        if not self.package:
            raise ValueError(
                "say which decoder to use: --package DIR (make export RUN=… writes one)"
            )
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
        check_numbers(
            noise=self.noise,
            simulated_phase=self.simulated_phase,
            scale=self.scale,
            tv_weight=self.tv_weight or 0.0,
            wavelet_weight=self.wavelet_weight or 0.0,
            slices=self.slices,
            seed=self.seed,
            latent_steps=self.latent_steps,
            image_steps=self.image_steps,
            restarts=self.restarts - 1,
            samples=self.samples,
        )
        if self.samples == 1:
            raise ValueError("one draw has no standard deviation: give samples 0, or at least 2")

    @property
    def weights(self) -> dict[str, float | None]:
        """Of the methods without a decoder."""
        return {TV: self.tv_weight, WAVELETS: self.wavelet_weight}

    @property
    def solver(self) -> SolverSettings:
        """The settings of the search."""
        return SolverSettings(
            latent_steps=self.latent_steps,
            image_steps=self.image_steps,
            restarts=self.restarts,
            support=self.support,
            seed=self.seed,
            samples=self.samples,
        )


def check_numbers(**numbers: float) -> None:
    """Raise ValueError, naming it, where a number of the options is negative or not finite."""
    for name, value in numbers.items():
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is too small or no number")


def run(options: Options) -> None:
    """The command. Raises InputError, in one line, where the inputs do not fit each other."""
    package = open_prior(options.package, options.law)
    output = Path(options.output or work_folder() / "reconstructions")
    _check_acceleration(options, package)
    record: dict[str, Any] = {"decoder": package_record(package, options.package),
              "options": options_record(options)}  # fmt: skip
    if options.store:
        store = open_store(options.store, work_folder())
        entries = people(store, package, options.split, options.subject)
        study = Simulation(
            store, entries, package, lambda x, number: undersampled(x, number, options),
            ZERO_FILLING, options.slices, options.weights, options.solver,
        )  # fmt: skip
        begin(output, files_of(entries))
        cases, weights = run_simulation(study, output)
        name = f"store {store.name}" + (" (simulated people)" if store.simulated else "")
    else:
        picture, problem, unit = (_from_image if options.image else _from_kspace)(options, package)
        weights = {
            method: USUAL_WEIGHT if given is None else given
            for method, given in options.weights.items()
        }
        begin(output, files_of())
        with Reporter() as reporter:
            case = solve_case(
                "slice", problem, ZERO_FILLING, package, weights, options.solver,
                lambda part: reporter.update(part, "reconstruction"),
            )  # fmt: skip
        cases, name = [case], Path(options.image or options.kspace).name
        values = case.images[IMAGE][0, 0].double().numpy() * unit
        write_picture(output / "reconstruction.nii.gz", values, picture.affine, picture)
        if case.deviation is not None:
            values = case.deviation[0, 0].double().numpy() * unit
            write_picture(output / "deviation.nii.gz", values, picture.affine, picture)
        record["scale"] = unit
    methods = write_scores(output, cases, {**record, "weights": weights})
    from pipeline.analysis.analysis_figures import comparison  # matplotlib takes a second

    write_figure(output / "comparison.png", comparison(cases, f"Reconstructions of {name}"))
    if methods:
        print(describe(methods, cases))
    print(f"images, scores, figure: {output}")


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
    seed = (options.seed, 0 if number >= 0 else 1, abs(number))  # people are told apart
    return cartesian_mask(shape, options.acceleration, options.centre_fraction, options.kind, seed)


def undersampled(image: Tensor, number: int, options: Options) -> Problem:
    """What a scanner would have measured of images (B,1,H,W) in [0,1], and their zero filling.

    number: the person's, which decides a drawn mask and the noise. Raises InputError where a given
    mask or sensitivities do not fit.
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
    """A mask (H,W) of 0 and 1 as float32. Raises InputError where it is another thing."""
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


def fits(picture: Picture, package: DecoderPackage, path: str) -> None:
    """Raise InputError where a picture has another size than the decoder draws."""
    if picture.image.shape != tuple(package.image_shape[1:]):
        height, width = package.image_shape[1:]
        raise InputError(
            f"{path} is {picture.image.shape[0]}x{picture.image.shape[1]} pixels, the decoder "
            f"draws {height}x{width}: crop, pad or resample it"
        )


def intensity_unit(image: np.ndarray, scale: float) -> float:
    """What is intensity 1: `scale`, or the 99.5th percentile of |image| above 5% of its largest."""
    size = np.abs(image)
    if scale or not size.max() > 0:
        return scale or 1.0
    return float(np.percentile(size[size > 0.05 * size.max()], 99.5))


def _from_image(options: Options, package: DecoderPackage) -> tuple[Picture, Problem, float]:
    picture = read_picture(Path(options.image), package.orientation, package.spacing_mm)
    fits(picture, package, options.image)
    unit = intensity_unit(picture.image, options.scale)
    image = torch.from_numpy((picture.image / unit).clip(0, 1)).float()[None, None]
    return picture, undersampled(image, 0, options), unit


def _from_kspace(options: Options, package: DecoderPackage) -> tuple[Picture, Problem, float]:
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
    fits(picture, package, options.like)
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
    return picture, problem, unit


def with_phase(maps: Tensor, kspace: Tensor, mask: Tensor) -> Tensor:
    """Sensitivities times each image's phase, as far as the fully sampled centre shows it.

    maps (coils,H,W); kspace (B,coils,H,W); mask (H,W) -> (B,coils,H,W). The centre is tapered by Hann's window.
    Raises InputError with fewer than 3 whole columns there, which show no phase.
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
