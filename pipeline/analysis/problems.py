"""Inverse problems of MR slices: read from files, stated, solved by every method, scored, written.

A decoder's picture has rows and columns of known direction ("rows A>P, columns L>R") and spacing;
a NIfTI slice may be stored in any order of axes. Results are turned back before they
are written, so that they lie over the input.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import nibabel as nib
import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.special import stdtrit
from torch import Tensor

from data_prep.sources.simulated import is_simulated
from pipeline.analysis import operators
from pipeline.analysis.baselines import best_weight, solve_total_variation, solve_wavelets
from pipeline.analysis.jobs import ReconstructOptions as Options
from pipeline.analysis.operators import Composed, MaskedFourier, Operator
from pipeline.analysis.solver import Prior, SolverSettings, solve
from pipeline.data.slices import SliceDataset, Store, SubjectEntry, to_scanner
from pipeline.data.volumes import read_values
from pipeline.errors import InputError
from pipeline.files import write_nifti
from pipeline.metrics.fidelity import psnr, ssim
from pipeline.package.package import DecoderPackage

# Methods without a decoder, each with a weight: operator, measurement, weight, start -> image.
CLASSICAL = {"total variation": solve_total_variation, "wavelets": solve_wavelets}
# Shows what the decoder adds beyond the outline of the head.
TV_WITHIN = "TV, decoder's outline"
LATENT, IMAGE = "decoder, latent", "decoder, image"
# Intensity above which the decoder draws tissue.
TISSUE = 0.04
# Of the pixel size: further away, brains have another size than in the training.
TOLERANCE = 0.05

Shape = tuple[int, int]


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
    data, cases = SliceDataset(store, entries), []

    def state(number: int, places: Sequence[int]) -> Problem:
        images = data.__getitems__([int(data.first[number]) + place for place in places])
        return degraded(images, number, options)

    for number, entry in enumerate(entries):
        places = regular_choice(len(entry.slice_indices), options.slices)
        write = partial(write_stack, entry, places)
        problem = partial(state, number, places)
        cases.append(Case(entry.subject, entry.family, len(places), problem, write))
    return cases


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
    data, limit = SliceDataset(store, others), min(options.slices or 3, 3)
    return [degraded(data.of_subject(k, limit), -1 - k, options) for k in range(len(others))]


def case_of_slice(options: Options, package: DecoderPackage) -> Case:
    """The case of --kspace or --image.

    Raises InputError where files do not fit the decoder, ValueError where options do not.
    """
    shape = package.image_shape[1:]
    factor = options.factor if options.operator == "image" else 1
    path = Path(options.like if options.kspace else options.image)
    picture = read_picture(path, package.orientation, package.spacing_mm * factor)
    size, wanted = picture.image.shape, (shape[0] // factor, shape[1] // factor)
    if size != wanted:
        raise InputError(
            f"{path} is {size[0]}x{size[1]} pixels, and for this decoder must be "
            f"{wanted[0]}x{wanted[1]}: crop, pad or resample it"
        )
    if options.kspace:
        problem, unit = _measured(options, shape)
    else:
        unit = intensity_unit(picture.image, options.scale)
        values = torch.from_numpy(picture.image / unit).float()[None, None]
        if options.operator == "fourier":
            problem = degraded(values.clamp(0, 1), 0, options)
        else:
            operator = degradation(options, shape)
            problem = Problem(operator, values, options.deviation, _enlarged(values, shape))
    affine = finer_affine(picture.affine, factor)

    def write(folder: Path, name: str, images: Tensor) -> None:
        values = images[0, 0].double().numpy() * unit
        write_picture(folder / f"{name}.nii.gz", values, affine, picture)

    return Case("", "", 1, lambda: problem, write, unit, picture.simulated)


# What a scanner, or a degradation, would have made of images


def degraded(image: Tensor, number: int, options: Options) -> Problem:
    """Images (B,1,H,W) in [0,1] as they would have been measured.

    number: the subject's, which decides a drawn mask and the noise; negative of validation. Raises
    InputError for a given mask or sensitivities, ValueError for options that do not fit.
    """
    generator = torch.Generator().manual_seed(2 * abs(number) + (number < 0) + 1000 * options.seed)
    shape, noise = (image.shape[-2], image.shape[-1]), options.deviation
    if options.operator == "image":
        operator = degradation(options, shape)
        clean = operator.forward(image)
        measured = clean + operators.complex_noise(clean, noise, generator)
        return Problem(operator, measured, noise, _enlarged(measured, shape), image)
    if options.mask:
        mask = read_mask(options.mask, shape)
    else:
        seed = (options.seed, int(number < 0), abs(number))  # another for each subject
        mask = operators.cartesian_mask(
            shape, options.acceleration, options.centre_fraction, options.kind, seed
        )
    maps = _sensitivities(options, shape, options.coils)
    phase = operators.smooth_phase(shape, options.simulated_phase)
    clean = MaskedFourier(mask, maps * torch.polar(torch.ones_like(phase), phase)).forward(image)
    measured = clean + mask * operators.complex_noise(clean, noise, generator)
    if options.simulated_phase and options.phase == "centre":
        maps = with_phase(maps, measured, mask)
    scanner = MaskedFourier(mask, maps)
    return Problem(scanner, measured, noise, scanner.adjoint(measured), image, mask)


def degradation(options: Options, shape: Shape) -> Operator:
    """Blur, then pixels `factor` times larger. Raises ValueError where the factor does not fit."""
    blur = operators.GaussianBlur(options.blur, shape)
    return Composed(blur, operators.Downsampling(options.factor, shape))


def _enlarged(image: Tensor, shape: Shape) -> Tensor:
    """Bicubic interpolation to (H,W), which is the identity at equal size: no prior."""
    return torch.nn.functional.interpolate(image, shape, mode="bicubic", align_corners=False)


def _measured(options: Options, shape: Shape) -> tuple[Problem, float]:
    """The problem of measured k-space, and the intensity that is 1."""
    path = options.kspace
    values = _read_coils(path, shape)
    if not np.iscomplexobj(values):
        raise InputError(f"{path} holds {values.dtype}, not complex numbers")
    maps = _sensitivities(options, shape, 1)
    if len(maps) != len(values):
        coils = f"{len(values)} coils, their sensitivities of {len(maps)}"
        raise InputError(f"{path} is of {coils}: give --sensitivities s.npy of all of them")
    kspace = torch.from_numpy(values.astype(np.complex64))[None]
    sampled = (kspace[0].abs().sum(dim=0) > 0).float()
    mask = read_mask(options.mask, shape) if options.mask else sampled
    if not mask.any():
        raise InputError(f"{path} is 0 everywhere")
    if options.phase == "centre":
        maps = with_phase(maps, kspace, mask)
    operator = MaskedFourier(mask, maps)
    unit = intensity_unit(operator.adjoint(kspace)[0, 0].numpy(), options.scale)
    measured, noise = mask * kspace / unit, options.deviation
    return Problem(operator, measured, noise, operator.adjoint(measured), None, mask), unit


def with_phase(maps: Tensor, kspace: Tensor, mask: Tensor) -> Tensor:
    """Sensitivities times each image's phase, as far as the fully sampled centre shows it.

    maps (coils,H,W); kspace (B,coils,H,W); mask (H,W) -> (B,coils,H,W). The centre is tapered by
    Hann's window. Raises InputError with fewer than 3 whole columns there, which show no phase.
    """
    band, (height, width) = operators.sampled_centre(mask), mask.shape
    if band < 3:
        raise InputError(
            f"the mask has {band} whole columns about the centre, too few to see the image's "
            "phase: give k-space whose image has none, and --phase none"
        )
    window = torch.zeros(height, width)
    start = width // 2 - band // 2
    window[:, start : start + band] = torch.hann_window(band + 2, periodic=False)[1:-1]
    rough = (maps.conj() * operators.ifft2c(window * kspace)).sum(dim=1, keepdim=True)
    return maps * torch.polar(torch.ones_like(rough.real), rough.angle())


# Solutions and their scores


def solve_all(
    problem: Problem,
    simple_name: str,
    prior: Prior,
    weights: Mapping[str, float],
    settings: SolverSettings,
    progress: Callable[[float], None],
) -> tuple[dict[str, Tensor], Tensor | None]:
    """A problem's images (B,C,H,W) in [0,1] by method, and the deviation of IMAGE's pixels.

    That is the standard deviation (B,C,H,W) over draws from the posterior, None without draws.
    simple_name: of the method whose image is `problem.simple`; weights: of the CLASSICAL methods.
    """
    images = {simple_name: problem.simple.clamp(0, 1)}
    images |= {method: solve_classical(method, problem, weights[method]) for method in CLASSICAL}
    operator, measured, noise = problem.operator, problem.measurement, problem.noise
    solution = solve(prior, operator, measured, noise, problem.simple, settings, progress)
    within, tv = outline(solution.drawn), "total variation"
    inside = replace(problem, operator=Composed(operators.Within(within), operator))
    images[TV_WITHIN] = within * solve_classical(tv, inside, weights[tv])
    images |= {LATENT: solution.drawn, IMAGE: solution.image}
    return images, None if solution.samples is None else solution.samples.std(dim=0)


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
    scores = {"psnr": psnr(reference, image), "ssim": ssim(reference, image), "nrmse": error / size}
    return {name: float(values.mean()) for name, values in scores.items()}


def covered(reference: Tensor, image: Tensor, deviation: Tensor, samples: int) -> float:
    """Share of the head's pixels within their 90% intervals, x ± t·s·√(1 + 1/n).

    reference, image, deviation (B,C,H,W); s of n samples, so t is the 0.95 quantile of Student's t
    with n − 1 degrees of freedom. The head is where the reference is above 0.
    """
    width = float(stdtrit(samples - 1, 0.95)) * math.sqrt(1 + 1 / samples)
    inside = (reference - image).abs() <= width * deviation
    return float(inside[reference > 0].double().mean())


def choose_weight(method: str, problems: Sequence[Problem]) -> float:
    """The weight of a CLASSICAL method with the highest SSIM over problems with references."""

    def mean_ssim(weight: float) -> float:
        images = [solve_classical(method, problem, weight) for problem in problems]
        pairs = [(p.reference, x) for p, x in zip(problems, images, strict=True)]
        return float(np.mean([score(truth, x)["ssim"] for truth, x in pairs if truth is not None]))

    return best_weight(mean_ssim)


# Files


@dataclass(frozen=True)
class Picture:
    """A slice in the decoder's grid and the way back to its file.

    image (H,W) float64; affine (4,4): (row, column, 0, 1) -> RAS mm; back: the axes' turn.
    """

    image: np.ndarray
    affine: np.ndarray
    back: np.ndarray
    simulated: bool


def read_picture(path: Path, orientation: str, spacing_mm: float) -> Picture:
    """Read a NIfTI file of one slice, turned to `orientation`.

    orientation: such as "rows A>P, columns L>R"; spacing_mm: the pixel size that it must have.
    Raises InputError where the file can't be read to its end, gives no orientation, has several
    slices, values that are not finite, another plane, or another spacing.
    """
    values, affine = read_values(path, affine_needed=True)
    if min(values.shape) != 1:
        raise InputError(f"{path} must hold one slice, not {'x'.join(map(str, values.shape))}")
    match = re.fullmatch(r"rows (.)>(.), columns (.)>(.)", orientation)
    if match is None:
        raise InputError(f"the decoder's pictures have no anatomical directions ({orientation!r})")
    # The axis codes of rows, columns and slices: "rows A>P, columns L>R" -> P, R, S.
    across = next(both[0] for both in ("RL", "AP", "SI") if not set(both) & set(match.groups()))
    stored, wanted = io_orientation(affine), axcodes2ornt((match[2], match[4], across))
    image = nib.Nifti1Image(values.astype(np.float64), affine)
    turned = image.as_reoriented(ornt_transform(stored, wanted))
    if turned.shape[2] != 1:
        raise InputError(f"{path} is a slice of another plane than the decoder's ({orientation})")
    spacing = np.linalg.norm(turned.affine[:3, :2], axis=0)
    if (abs(spacing / spacing_mm - 1) > TOLERANCE).any():
        raise InputError(
            f"{path} has pixels of {spacing[0]:.3g} x {spacing[1]:.3g} mm, and for this decoder "
            f"must have {spacing_mm:.3g} mm: resample it, or train on its spacing"
        )
    back = ornt_transform(wanted, stored)
    picture = np.asarray(turned.dataobj)[:, :, 0]
    return Picture(picture, turned.affine, back, is_simulated(nib.load(path)))


def write_picture(path: Path, image: np.ndarray, affine: np.ndarray, like: Picture) -> None:
    """Write a picture (H,W) as .nii.gz in the axes of the file that `like` came from, atomically.

    affine: (4,4), (row, column, 0, 1) to RAS mm.
    """
    turned = nib.Nifti1Image(np.asarray(image, np.float64)[:, :, None], affine)
    stored = turned.as_reoriented(like.back)
    _write_volume(path, np.asarray(stored.dataobj), stored.affine)


def _write_volume(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """An array as .nii.gz, float32, with its affine as sform and qform (mm), atomically."""
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    write_nifti(path, image)


def write_stack(
    entry: SubjectEntry, places: Sequence[int], folder: Path, name: str, images: Tensor
) -> None:
    """Write slices of one subject of a store as NIfTI, over its volume and in the volume's unit.

    Where the store does not record that unit they are in [0,1]. Slices whose numbers are not evenly
    spaced become a file each. places: which of the subject's slices they are; name: of the file,
    without suffix, and values of "deviation" are differences; images: (n,1,H,W) in [0,1].
    """
    affine, indices = np.asarray(entry.affine), [entry.slice_indices[place] for place in places]
    values = images[:, 0].permute(1, 2, 0).double().numpy()
    if (native := entry.volume) is not None and name == "deviation":
        values = values * (native.high - native.low)
    elif native is not None:
        values = to_scanner(values, native.low, native.high)
    if len(set(np.diff(indices))) <= 1:
        _write_volume(folder / f"{name}.nii.gz", values, stack_affine(affine, indices))
        return
    for number, index in enumerate(indices):
        path = folder / f"{name}-slice-{index:03d}.nii.gz"
        _write_volume(path, values[:, :, [number]], stack_affine(affine, [index]))


def stack_affine(affine: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """The affine of a stack of evenly spaced slices: (row, column, place in it, 1) to RAS mm.

    affine: (4,4) of a shard, (row, column, slice number, 1) to RAS mm; indices: ascending.
    """
    place = np.eye(4)
    place[2, 2] = indices[1] - indices[0] if len(indices) > 1 else 1
    place[2, 3] = indices[0]
    return affine @ place


def finer_affine(affine: np.ndarray, factor: int) -> np.ndarray:
    """The affine of pixels `factor` times finer than those of a picture's affine."""
    place = np.diag([1 / factor, 1 / factor, 1.0, 1.0])
    place[:2, 3] = -(factor - 1) / (2 * factor)
    return affine @ place


def regular_choice(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` places, in equal steps about the middle; 0 = all."""
    if not limit or limit >= count:
        return list(range(count))
    step = max(1, count // limit)
    first = (count - 1 - (limit - 1) * step) // 2
    return [first + step * i for i in range(limit)]


def intensity_unit(image: np.ndarray, scale: float) -> float:
    """The value that becomes intensity 1.

    `scale`, or where it is 0 the 99.5th percentile of those |image| that exceed 5% of the largest.
    """
    size = np.abs(image)
    if scale or not size.max() > 0:
        return scale or 1.0
    return float(np.percentile(size[size > 0.05 * size.max()], 99.5))


def read_array(path: Path) -> np.ndarray:
    """A .npy file, or the values of a NIfTI file. Raises InputError where it can't be read."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return read_values(path, affine_needed=False)[0]
    try:
        values: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} can't be read ({str(error)[:120]})") from error
    if not isinstance(values, np.ndarray):
        raise InputError(f"{path} is an archive of arrays: save one array as .npy (numpy.save)")
    return values


def _sensitivities(options: Options, shape: Shape, coils: int) -> Tensor:
    """Those of the file, or of so many made-up coils: (coils,H,W)."""
    if not options.sensitivities:
        return operators.smooth_sensitivities(coils, shape)
    return torch.from_numpy(_read_coils(options.sensitivities, shape).astype(np.complex64))


def _read_coils(path: str, shape: Shape) -> np.ndarray:
    """Finite numbers (coils,H,W). Raises InputError for anything else."""
    values = read_array(Path(path))
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[1:] != shape:
        wanted = f"(coils,{shape[0]},{shape[1]})"
        raise InputError(f"{path} must hold {wanted} of k-space or sensitivities: {values.shape}")
    if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
        raise InputError(f"{path} has values that are not finite numbers")
    return values


def read_mask(path: str, shape: Shape) -> Tensor:
    """A mask (H,W) of 0 and 1 as float32. Raises InputError where it is something else."""
    values = np.squeeze(read_array(Path(path)))
    if values.shape != shape:
        size = "x".join(map(str, values.shape))
        raise InputError(f"mask {path} is {size}, the image {shape[0]}x{shape[1]}: give one of it")
    if not np.isin(values, (0, 1)).all() or not values.any():
        raise InputError(f"mask {path} must hold 0 and 1, and some 1")
    return torch.from_numpy(values.astype(np.float32))
