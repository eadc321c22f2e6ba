"""A comparison of methods on inverse problems: who, what, how well; tables, figures, NIfTI files.

What reconstruction and restoration share. A Problem is a batch of slices of one operator; each
method's images of it are scored where the truth is known.
"""

import csv
import glob
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pipeline.analysis.geometry import regular_choice, stack_affine, write_volume
from pipeline.analysis.inverse import Prior, SolverSettings, solve, support
from pipeline.analysis.operators import Composed, Operator, Within
from pipeline.analysis.total_variation import best_weight, total_variation
from pipeline.analysis.wavelets import sparse_wavelets
from pipeline.data.intensity import to_scanner
from pipeline.data.slices import SliceDataset, Store, SubjectEntry
from pipeline.data.volumes import differing
from pipeline.decoder_package import DecoderPackage, load
from pipeline.errors import InputError
from pipeline.evaluation.aggregate import aggregate
from pipeline.evaluation.fidelity import psnr, ssim
from pipeline.files import replacing, work_folder, write_text
from pipeline.losses.law import GaussianLaw
from pipeline.progress import Reporter

TV, WAVELETS = "total variation", "wavelets"
LATENT, IMAGE = "decoder, latent", "decoder, image"
# What is had without a decoder, each with a weight: operator, measurement, weight, start -> image.
CLASSICAL = {TV: total_variation, WAVELETS: sparse_wavelets}
Weights = dict[str, float]
METRICS = ("psnr", "ssim", "nrmse")
# NIfTI files, by their stem.
IMAGE_FILE, DEVIATION_FILE = "reconstruction", "deviation"
Choice = Literal["best", "fitted", "term"]
# What the decoder adds beyond knowing where the head is shows against this.
TV_WITHIN = "TV, decoder's support"


@dataclass(frozen=True)
class Problem:
    """Slices of one person that were measured alike.

    operator A; measurement y; noise s, intensity units; simple (B,C,H,W): what is had without a
    prior; reference (B,C,H,W) in [0,1], where the truth is known; mask (H,W) of k-space.
    """

    operator: Operator
    measurement: Tensor
    noise: float
    simple: Tensor
    reference: Tensor | None = None
    mask: Tensor | None = None


# Images (B,C,H,W) in [0,1] and their subject's number, which decides mask and noise -> a Problem.
Degrade = Callable[[Tensor, int], Problem]


@dataclass
class Case:
    """A person's problem, solved: images (B,C,H,W) in [0,1] by method."""

    name: str
    problem: Problem
    images: dict[str, Tensor]
    deviation: Tensor | None = None
    """Standard deviation of each pixel of IMAGE over draws from the posterior, (B,C,H,W)."""
    coverage: float | None = None
    """Share of the head's pixels within the 90% intervals of those draws about IMAGE."""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def solve_case(
    name: str,
    problem: Problem,
    simple_name: str,
    prior: Prior,
    weights: Weights,
    settings: SolverSettings,
    notice: Callable[[float], None],
) -> Case:
    """One problem by every method, and scores, means over slices, where there is a reference."""
    images = {simple_name: problem.simple.clamp(0, 1)}
    for method, solver in CLASSICAL.items():
        images[method] = solver(
            problem.operator, problem.measurement, weights[method], problem.simple
        )
    found = solve(
        prior,
        problem.operator,
        problem.measurement,
        problem.noise,
        problem.simple,
        settings,
        notice,
    )
    within = (support(found.drawn) > 0.5).to(found.drawn.dtype)
    images[TV_WITHIN] = within * total_variation(
        Composed(Within(within), problem.operator), problem.measurement, weights[TV], problem.simple
    )
    images |= {LATENT: found.drawn, IMAGE: found.image}
    case = Case(name, problem, images)
    if found.samples is not None:
        case.deviation = found.samples.std(dim=0)
        if problem.reference is not None:
            case.coverage = covered(
                problem.reference, found.image, case.deviation, len(found.samples)
            )
    if problem.reference is not None:
        case.scores = {method: _scores(problem.reference, x) for method, x in images.items()}
    return case


def _scores(reference: Tensor, image: Tensor) -> dict[str, float]:
    error, size = (x.square().sum(dim=(1, 2, 3)).sqrt() for x in (reference - image, reference))
    values = {
        "psnr": psnr(reference, image),
        "ssim": ssim(reference, image),
        "nrmse": error / size,
    }
    return {name: float(value.mean()) for name, value in values.items()}


def covered(reference: Tensor, image: Tensor, deviation: Tensor, samples: int) -> float:
    """Share of the head's pixels within their 90% intervals, x ± t·s·√(1 + 1/n).

    reference, image, deviation (B,C,H,W); s of n samples, so t is the 0.95 quantile of Student's t
    with n − 1 degrees of freedom. The head is where the reference is above 0.
    """
    width = float(stats.t.ppf(0.95, samples - 1)) * math.sqrt(1 + 1 / samples)
    inside = (reference - image).abs() <= width * deviation
    return float(inside[reference > 0].double().mean())


def choose_weight(
    method: str, problems: Sequence[Problem], notice: Callable[[float], None]
) -> float:
    """The weight of a CLASSICAL method with the highest SSIM over problems whose truth is known."""

    def score(weight: float) -> float:
        found = []
        for p in problems:
            assert p.reference is not None
            image = CLASSICAL[method](p.operator, p.measurement, weight, p.simple)
            found.append(_scores(p.reference, image)["ssim"])
        return float(np.mean(found))

    return best_weight(score, notice)


def open_package(source: str, device: str = "cpu") -> DecoderPackage:
    """A decoder package by folder, by name under WORK/packages, or by its address in MLflow."""
    named = work_folder() / "packages" / source
    return load(named if "/" not in source and named.is_dir() else source, device)


def open_prior(source: str, law: Choice = "best", device: str = "cpu") -> DecoderPackage:
    """A package to use under a Gaussian law of its residuals; without one InputError, at once.

    law: best is the fitted one where the package has it, else that of its term.
    """
    package = open_package(source, device)
    if law != "best":
        package.which = law
    if not isinstance(package.law(torch.zeros(1, package.latent_size, device=device)), GaussianLaw):
        raise InputError(
            f"the likelihood {package.term} is no Gaussian: use the fitted law (--law fitted), or "
            "a decoder of likelihood.term blur, gaussian or fourier_gaussian"
        )
    return package


def check_finest(package: DecoderPackage, finest: int) -> None:
    """Raise InputError where no level of the decoder is that coarse; 0 stands for all levels."""
    try:
        like = next(package.parameters())
        package.up_to(like.new_zeros(1, package.latent_size), finest or package.image_shape[-1])
    except ValueError as error:
        raise InputError(f"--finest {finest}: {error}") from error


def files_of(entries: Sequence[SubjectEntry] = ()) -> list[str]:
    """Patterns of the files that a run may write, for those subjects or for a single image."""
    folders = [f"{glob.escape(entry.subject)}/" for entry in entries] or [""]
    kinds = (IMAGE_FILE, DEVIATION_FILE)
    images = [f"{folder}{kind}*.nii.gz" for folder in folders for kind in kinds]
    return ["scores.json", "scores.csv", "comparison.png", *images]


def people(store: Store, package: DecoderPackage, split: str, subject: str) -> list[SubjectEntry]:
    """Whom to score: a split's people, or one subject of the store.

    Raises InputError where there is nobody, the images have another shape than the decoder's or
    were cut in another way, or a person was trained on.
    """
    if tuple(store.image_shape) != tuple(package.image_shape):
        raise InputError(
            f"store {store.name} holds images of {store.image_shape}, the decoder draws "
            f"{tuple(package.image_shape)}: prepare it with the same prepare.size"
        )
    other = differing(store.manifest["configuration"], package.prepare_keys)
    if other:
        raise InputError(
            f"store {store.name} was prepared with another {', '.join(other)} than the decoder's: "
            "prepare it as the decoder's was"
        )
    entries = [e for e in store.subjects("all" if subject else split)
               if subject in ("", e.subject)]  # fmt: skip
    if not entries:
        raise InputError(f"store {store.name} has nobody in split {split}" if not subject else
                         f"store {store.name} has no subject {subject}")  # fmt: skip
    seen = [
        e.subject
        for e in entries
        if package.trained_on(subject=e.subject, family=e.family, source_sha256=e.source_sha256)
    ]
    if seen:
        raise InputError(
            f"{len(seen)} of {len(entries)} subjects were trained on by this decoder "
            f"({', '.join(seen[:5])}): score the split test, or a store of other people"
        )
    return entries


@dataclass(frozen=True)
class Simulation:
    """A study on people of a store, whose images are degraded by `degrade(image, number)`.

    number: the person's place, which decides mask and noise; validation people have negative ones.
    """

    store: Store
    entries: list[SubjectEntry]
    package: DecoderPackage
    degrade: Degrade
    simple_name: str
    slices: int
    weights: dict[str, float | None]
    """Of the CLASSICAL methods; None: chosen on validation people."""
    settings: SolverSettings


def run_simulation(study: Simulation, output: Path) -> tuple[list[Case], Weights]:
    """Solve everybody's problem and write their NIfTI files; the cases and the weights used."""
    with Reporter() as reporter:
        weights = {method: value for method, value in study.weights.items() if value is not None}
        wanted = [method for method in study.weights if method not in weights]
        share = 0.2 * len(wanted)
        problems = _validation_problems(study) if wanted else []
        for place, method in enumerate(wanted):

            def told(part: float, place: int = place, method: str = method) -> None:
                reporter.update(0.2 * (place + part), f"weight of {method}")

            weights[method] = choose_weight(method, problems, told)
        cases, data = [], SliceDataset(study.store, study.entries)
        for number, entry in enumerate(study.entries):
            places = regular_choice(len(entry.slice_indices), study.slices)
            images = data.__getitems__([int(data.first[number]) + place for place in places])

            def notice(part: float, number: int = number) -> None:
                done = (number + part) / len(study.entries)
                reporter.update(share + (1 - share) * done, f"subject {number + 1}")

            problem = study.degrade(images, number)
            case = solve_case(
                entry.subject, problem, study.simple_name, study.package, weights,
                study.settings, notice,
            )  # fmt: skip
            cases.append(case)
            write_stack(output / entry.subject, case.images[IMAGE], entry, places)
            if case.deviation is not None:
                write_stack(output / entry.subject, case.deviation, entry, places, DEVIATION_FILE)
    return cases, weights


def _validation_problems(study: Simulation) -> list[Problem]:
    """Problems of validation people who are not scored, to choose weights by."""
    scored = {entry.family for entry in study.entries}
    entries = [e for e in study.store.subjects("validation") if e.family not in scored]
    if not entries:
        raise InputError(
            f"store {study.store.name} has nobody in split validation to choose the weights of "
            "total variation and wavelets by: give them (--tv_weight 0.003 --wavelet_weight 0.003)"
        )
    data = SliceDataset(study.store, entries)
    return [
        study.degrade(data.of_subject(number, min(study.slices or 3, 3)), -1 - number)
        for number in range(min(len(entries), 5))
    ]


def write_stack(
    folder: Path,
    images: Tensor,
    entry: SubjectEntry,
    places: Sequence[int],
    name: str = IMAGE_FILE,
) -> list[Path]:
    """Slices of one person as NIfTI files that lie over their volume, in its unit: the paths.

    Where the store does not know that unit they are in [0,1]. images (n,1,H,W); places: which of
    the entry's slices. One file, or one a slice where their numbers are not evenly spaced.
    """
    affine = np.asarray(entry.affine)
    indices = [entry.slice_indices[place] for place in places]
    values = images[:, 0].permute(1, 2, 0).double().numpy()
    if (native := entry.volume) is not None:
        values = (
            to_scanner(values, native.low, native.high)
            if name == IMAGE_FILE
            else values * (native.high - native.low)
        )
    together = stack_affine(affine, indices)
    if together is not None:
        path = folder / f"{name}.nii.gz"
        write_volume(path, values, together)
        return [path]
    paths = []
    for number, index in enumerate(indices):
        single = stack_affine(affine, [index])
        assert single is not None
        paths.append(folder / f"{name}-slice-{index:03d}.nii.gz")
        write_volume(paths[-1], values[:, :, number : number + 1], single)
    return paths


def write_scores(output: Path, cases: Sequence[Case], record: dict[str, Any]) -> dict[str, Any]:
    """scores.csv, a line a person and method, and scores.json: means over people, intervals.

    record: what else scores.json says. Returns the methods' means.
    """
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["subject", "method", "slices", *METRICS])
    values: dict[str, dict[str, list[float]]] = {}
    for case in cases:
        for method, scores in case.scores.items():
            row = [scores[metric] for metric in METRICS]
            table.writerow([case.name, method, len(case.images[method]), *row])
            for metric, value in scores.items():
                values.setdefault(method, {}).setdefault(metric, []).append(value)
    methods = {
        method: aggregate({metric: np.array(found) for metric, found in metrics.items()})
        for method, metrics in values.items()
    }
    write_text(output / "scores.csv", stream.getvalue())
    content = {**record, "subjects": len(cases), "methods": methods}
    coverage = [case.coverage for case in cases if case.coverage is not None]
    if coverage:
        content |= {"error_bars": aggregate({"coverage_90": np.array(coverage)})}
    write_text(output / "scores.json", json.dumps(content, indent=1) + "\n")
    return methods


def describe(methods: dict[str, Any], cases: Sequence[Case]) -> str:
    """The methods' means as a table of plain text, and how well the error bars hold."""
    lines = [f"{'method':24s} {'PSNR, dB':>9s} {'SSIM':>7s} {'NRMSE':>7s}"]
    for method, metrics in methods.items():
        psnr, ssim, nrmse = (metrics[name]["mean"] for name in METRICS)
        lines.append(f"{method:24s} {psnr:9.2f} {ssim:7.4f} {nrmse:7.4f}")
    coverage = [case.coverage for case in cases if case.coverage is not None]
    if coverage:
        share = 100 * np.mean(coverage)
        lines.append(f"{share:.1f}% of the head's pixels lie within their 90% intervals")
    return "\n".join(lines)


def write_figure(path: Path, figure: Any) -> None:
    """A matplotlib figure as PNG, atomically."""
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})


def package_record(package: DecoderPackage, source: str) -> dict[str, Any]:
    """Which decoder it was, for scores.json."""
    keys = ("name", "digest", "run", "store")
    return {"source": source, **{key: package.metadata.get(key) for key in keys}}
