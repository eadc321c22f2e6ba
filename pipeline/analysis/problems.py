"""Inverse problems of MR slices: stated, solved by every method, and scored."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pipeline.analysis.baselines import best_weight, solve_total_variation, solve_wavelets
from pipeline.analysis.geometry import (
    finer_affine,
    intensity_unit,
    read_array,
    read_picture,
    regular_choice,
    write_picture,
    write_stack,
)
from pipeline.analysis.operators import (
    Composed,
    Downsampling,
    GaussianBlur,
    MaskedFourier,
    Operator,
    Within,
    cartesian_mask,
    complex_noise,
    ifft2c,
    sampled_centre,
    smooth_phase,
    smooth_sensitivities,
)
from pipeline.analysis.options import ReconstructOptions as Options
from pipeline.analysis.solver import Prior, SolverSettings, solve
from pipeline.data.slices import SliceDataset, Store, SubjectEntry
from pipeline.errors import InputError
from pipeline.metrics.fidelity import psnr, ssim
from pipeline.package.package import DecoderPackage

# Methods without a decoder, each with a weight: operator, measurement, weight, start -> image.
CLASSICAL = {"total variation": solve_total_variation, "wavelets": solve_wavelets}
# Shows what the decoder adds beyond the outline of the head.
TV_WITHIN = "TV, decoder's outline"
LATENT, IMAGE = "decoder, latent", "decoder, image"
METRICS = ("psnr", "ssim", "nrmse")
# Intensity above which the decoder draws tissue.
TISSUE = 0.04


@dataclass(frozen=True)
class Problem:
    """Slices of one subject that were measured alike.

    operator A; measurement y; noise s, intensity units; simple (B,C,H,W): the image without a
    prior; reference (B,C,H,W) in [0,1], the true image where there is one; mask (H,W) of k-space.
    """

    operator: Operator
    measurement: Tensor
    noise: float
    simple: Tensor
    reference: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Solved:
    """A problem's images (B,C,H,W) in [0,1] by method, and what is known of them.

    deviation (B,C,H,W): standard deviation of each pixel of IMAGE over draws from the posterior;
    coverage: share of the head within the 90% intervals of those draws about IMAGE; scores: means
    over slices by method. None and {} where there are no draws or no reference.
    """

    images: dict[str, Tensor]
    deviation: Tensor | None
    coverage: float | None
    scores: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Case:
    """Slices to be solved together: those of a subject, or the one of a file.

    name: of the subject, "" of a file; state: states the problem; write: takes a folder, a name
    without suffix and images (B,1,H,W) in [0,1], and writes them as NIfTI in the file's own unit;
    unit: the intensity of a single file that is 1; simulated: its header says so.
    """

    name: str
    family: str
    slices: int
    state: Callable[[], Problem]
    write: Callable[[Path, str, Tensor], None]
    unit: float = 1.0
    simulated: bool = False


def cases_of_store(options: Options, store: Store, entries: Sequence[SubjectEntry]) -> list[Case]:
    """A case a subject, whose slices are degraded here."""
    data = SliceDataset(store, entries)

    def case(number: int, entry: SubjectEntry) -> Case:
        places = regular_choice(len(entry.slice_indices), options.slices)

        def state() -> Problem:
            first = int(data.first[number])
            return degraded(data.__getitems__([first + p for p in places]), number, options)

        write = partial(write_stack, entry, places)
        return Case(entry.subject, entry.family, len(places), state, write)

    return [case(number, entry) for number, entry in enumerate(entries)]


def validation_problems(
    options: Options, store: Store, entries: Sequence[SubjectEntry]
) -> list[Problem]:
    """Problems of validation subjects that are not scored, to choose weights by.

    At most 5 subjects and 3 slices of each. Raises InputError where there is no such subject.
    """
    scored = {entry.family for entry in entries}
    others = [e for e in store.subjects("validation") if e.family not in scored][:5]
    if not others:
        raise InputError(
            f"store {store.name} has no subjects in split validation to choose weights by: "
            "give them (--tv_weight 0.003 --wavelet_weight 0.003)"
        )
    data = SliceDataset(store, others)
    limit = min(options.slices or 3, 3)
    return [degraded(data.of_subject(k, limit), -1 - k, options) for k in range(len(others))]


def case_of_slice(options: Options, package: DecoderPackage) -> Case:
    """The case of --kspace or --image. Raises InputError where files do not fit the decoder."""
    height, width = package.image_shape[1:]
    factor = options.factor if options.operator == "image" else 1
    path = options.like if options.kspace else options.image
    picture = read_picture(Path(path), package.orientation, package.spacing_mm * factor)
    wanted = (height // factor, width // factor)
    if picture.image.shape != wanted:
        raise InputError(
            f"{path} is {picture.image.shape[0]}x{picture.image.shape[1]} pixels, and for this "
            f"decoder must be {wanted[0]}x{wanted[1]}: crop, pad or resample it"
        )
    affine = finer_affine(picture.affine, factor)
    if options.kspace:
        problem, unit = _measured(options, (height, width))
    else:
        unit = intensity_unit(picture.image, options.scale)
        values = torch.from_numpy(picture.image / unit).float()[None, None]
        if options.operator == "fourier":
            problem = degraded(values.clamp(0, 1), 0, options)
        else:
            operator = degradation(options.blur, factor, (height, width))
            simple = _enlarged(values, (height, width))
            problem = Problem(operator, values, options.deviation, simple)

    def write(folder: Path, name: str, images: Tensor) -> None:
        values = images[0, 0].double().numpy() * unit
        write_picture(folder / f"{name}.nii.gz", values, affine, picture)

    return Case("", "", 1, lambda: problem, write, unit, picture.simulated)


def solve_all(
    problem: Problem,
    simple_name: str,
    prior: Prior,
    weights: dict[str, float],
    settings: SolverSettings,
    progress: Callable[[float], None],
) -> Solved:
    """Solve a problem by every method.

    Args:
        problem: what was measured.
        simple_name: of the method without a prior, whose image `problem.simple` is.
        prior: the decoder package.
        weights: of the CLASSICAL methods.
        settings: of the search under the prior.
        progress: gets the share that is done.
    """
    images = {simple_name: problem.simple.clamp(0, 1)}
    images |= {method: solve_classical(method, problem, weights[method]) for method in CLASSICAL}
    solution = solve(
        prior,
        problem.operator,
        problem.measurement,
        problem.noise,
        problem.simple,
        settings,
        progress,
    )
    within = outline(solution.drawn)
    inside = replace(problem, operator=Composed(Within(within), problem.operator))
    tv = "total variation"
    images[TV_WITHIN] = within * solve_classical(tv, inside, weights[tv])
    images |= {LATENT: solution.drawn, IMAGE: solution.image}
    deviation = coverage = None
    scores = {}
    if solution.samples is not None:
        deviation = solution.samples.std(dim=0)
    if (truth := problem.reference) is not None:
        scores = {method: score(truth, image) for method, image in images.items()}
        if deviation is not None:
            coverage = covered(truth, solution.image, deviation, settings.samples)
    return Solved(images, deviation, coverage, scores)


def solve_classical(method: str, problem: Problem, weight: float) -> Tensor:
    """The image (B,C,H,W) of one of the CLASSICAL methods."""
    return CLASSICAL[method](problem.operator, problem.measurement, weight, problem.simple)


def outline(drawn: Tensor) -> Tensor:
    """1 where the decoder draws tissue and about a pixel around, else 0: (B,C,H,W)."""
    tissue = (drawn > TISSUE).to(drawn.dtype)
    grown = torch.nn.functional.max_pool2d(tissue, 3, stride=1, padding=1)
    return (torch.nn.functional.avg_pool2d(grown, 3, stride=1, padding=1) > 0.5).to(drawn.dtype)


def score(reference: Tensor, image: Tensor) -> dict[str, float]:
    """PSNR (dB), SSIM and the error's norm over the reference's, means over slices (B,C,H,W)."""
    error, size = (x.square().sum(dim=(1, 2, 3)).sqrt() for x in (reference - image, reference))
    values = (psnr(reference, image), ssim(reference, image), error / size)
    return {name: float(value.mean()) for name, value in zip(METRICS, values, strict=True)}


def covered(reference: Tensor, image: Tensor, deviation: Tensor, samples: int) -> float:
    """Share of the head's pixels within their 90% intervals, x ± t·s·√(1 + 1/n).

    reference, image, deviation (B,C,H,W); s of n samples, so t is the 0.95 quantile of Student's t
    with n − 1 degrees of freedom. The head is where the reference is above 0.
    """
    width = float(stats.t.ppf(0.95, samples - 1)) * math.sqrt(1 + 1 / samples)
    inside = (reference - image).abs() <= width * deviation
    return float(inside[reference > 0].double().mean())


def choose_weight(method: str, problems: Sequence[Problem]) -> float:
    """The weight of a CLASSICAL method with the highest SSIM over problems with references."""

    def mean_ssim(weight: float) -> float:
        images = [solve_classical(method, problem, weight) for problem in problems]
        pairs = [(p.reference, x) for p, x in zip(problems, images, strict=True)]
        return float(np.mean([score(truth, x)["ssim"] for truth, x in pairs if truth is not None]))

    return best_weight(mean_ssim)


def degraded(image: Tensor, number: int, options: Options) -> Problem:
    """What a scanner, or a degradation, would have made of images.

    Args:
        image: (B,1,H,W) in [0,1].
        number: the subject's, which decides a drawn mask and the noise; negative of validation.
        options: of the command.

    Raises:
        InputError: a given mask, sensitivities or factor do not fit, or no drawn mask exists.
    """
    generator = torch.Generator().manual_seed(2 * abs(number) + (number < 0) + 1000 * options.seed)
    shape = (image.shape[-2], image.shape[-1])
    if options.operator == "image":
        operator = degradation(options.blur, options.factor, shape)
        clean = operator.forward(image)
        measured = clean + complex_noise(clean, options.deviation, generator)
        return Problem(operator, measured, options.deviation, _enlarged(measured, shape), image)
    mask = read_mask(options.mask, shape) if options.mask else _drawn_mask(shape, options, number)
    maps = _sensitivities(options, shape, options.coils)
    phase = smooth_phase(shape, options.simulated_phase)
    clean = MaskedFourier(mask, maps * torch.polar(torch.ones_like(phase), phase)).forward(image)
    measured = clean + mask * complex_noise(clean, options.deviation, generator)
    if options.simulated_phase and options.phase == "centre":
        maps = with_phase(maps, measured, mask)
    scanner = MaskedFourier(mask, maps)
    return Problem(scanner, measured, options.deviation, scanner.adjoint(measured), image, mask)


def degradation(blur: float, factor: int, shape: tuple[int, int]) -> Operator:
    """Blur, then pixels `factor` times larger. Raises InputError where the factor does not fit."""
    try:
        return Composed(GaussianBlur(blur, shape), Downsampling(factor, shape))
    except ValueError as error:
        raise InputError(str(error)) from error


def _enlarged(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Bicubic interpolation to (H,W): the image without a prior."""
    if image.shape[-2:] == shape:
        return image
    return torch.nn.functional.interpolate(image, shape, mode="bicubic", align_corners=False)


def _drawn_mask(shape: tuple[int, int], options: Options, number: int) -> Tensor:
    seed = (options.seed, int(number < 0), abs(number))  # another for each subject
    try:
        return cartesian_mask(
            shape, options.acceleration, options.centre_fraction, options.kind, seed
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def _measured(options: Options, shape: tuple[int, int]) -> tuple[Problem, float]:
    """The problem of measured k-space, and the intensity that is 1."""
    path = options.kspace
    values = _read_coils(path, shape)
    if not np.iscomplexobj(values):
        raise InputError(f"{path} holds {values.dtype}, not complex numbers")
    if len(values) > 1 and not options.sensitivities:
        raise InputError(f"{path} is of {len(values)} coils: give --sensitivities s.npy")
    maps = _sensitivities(options, shape, 1)
    if len(maps) != len(values):
        raise InputError(
            f"{path} is of {len(values)} coils, {options.sensitivities} of {len(maps)}"
        )
    kspace = torch.from_numpy(values.astype(np.complex64))[None]
    sampled = (kspace[0].abs().sum(dim=0) > 0).float()
    mask = read_mask(options.mask, shape) if options.mask else sampled
    if not mask.any():
        raise InputError(f"{path} is 0 everywhere")
    if options.phase == "centre":
        maps = with_phase(maps, kspace, mask)
    operator = MaskedFourier(mask, maps)
    unit = intensity_unit(operator.adjoint(kspace)[0, 0].numpy(), options.scale)
    measured = mask * kspace / unit
    simple = operator.adjoint(measured)
    return Problem(operator, measured, options.deviation, simple, None, mask), unit


def _sensitivities(options: Options, shape: tuple[int, int], coils: int) -> Tensor:
    """Those of the file, or of so many made-up coils: (coils,H,W)."""
    if not options.sensitivities:
        return smooth_sensitivities(coils, shape)
    return torch.from_numpy(_read_coils(options.sensitivities, shape).astype(np.complex64))


def _read_coils(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Finite numbers (coils,H,W). Raises InputError for anything else."""
    values = read_array(Path(path))
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[1:] != shape:
        wanted = f"(coils,{shape[0]},{shape[1]})"
        raise InputError(f"{path} must hold {wanted} of k-space or sensitivities: {values.shape}")
    if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
        raise InputError(f"{path} has values that are not finite numbers")
    return values


def read_mask(path: str, shape: tuple[int, int]) -> Tensor:
    """A mask (H,W) of 0 and 1 as float32. Raises InputError where it is something else."""
    values = np.squeeze(read_array(Path(path)))
    if values.shape != shape:
        raise InputError(f"mask {path} is {'x'.join(map(str, values.shape))}, the image "
                         f"{shape[0]}x{shape[1]}: they must have one shape")  # fmt: skip
    if not np.isin(values, (0, 1)).all() or not values.any():
        raise InputError(f"mask {path} must hold 0 and 1, and some 1")
    return torch.from_numpy(values.astype(np.float32))


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
