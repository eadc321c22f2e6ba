"""Methods compared on the subjects of a store: tables and NIfTI files."""

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from data_prep import quantity
from pipeline.analysis.geometry import regular_choice, stack_affine, write_volume
from pipeline.analysis.inverse.problem import (
    IMAGE,
    METRICS,
    Case,
    Degrade,
    Problem,
    Weights,
    choose_weight,
    solve_case,
)
from pipeline.analysis.inverse.solver import SolverSettings
from pipeline.analysis.results import Parts
from pipeline.data.intensity import to_scanner
from pipeline.data.slices import SliceDataset, Store, SubjectEntry
from pipeline.decoder_package import DecoderPackage
from pipeline.errors import InputError
from pipeline.files import csv_text, write_json, write_text
from pipeline.metrics.statistics import aggregate
from pipeline.progress import Reporter

# NIfTI files, by their stem.
IMAGE_FILE, DEVIATION_FILE = "reconstruction", "deviation"
# What is kept of a Case; its problem is stated again.
FOUND = ("images", "deviation", "coverage", "scores")


def files_of(entries: Sequence[SubjectEntry] = ()) -> list[str]:
    """Patterns of the files that a run may write, for those subjects or for a single image."""
    folders = [f"{glob.escape(entry.subject)}/" for entry in entries] or [""]
    kinds = (IMAGE_FILE, DEVIATION_FILE)
    images = [f"{folder}{kind}*.nii.gz" for folder in folders for kind in kinds]
    return ["scores.json", "scores.csv", "comparison.png", *images]


@dataclass(frozen=True)
class Simulation:
    """A study on subjects of a store, whose images are degraded by `degrade(image, number)`.

    number: the subject's, which decides mask and noise; negative for validation subjects.
    """

    store: Store
    entries: list[SubjectEntry]
    package: DecoderPackage
    degrade: Degrade
    simple_name: str
    slices: int
    weights: dict[str, float | None]
    """Of the CLASSICAL methods; None: chosen on validation subjects."""
    settings: SolverSettings

    @property
    def wanted(self) -> list[str]:
        """The methods whose weights are to be chosen."""
        return [method for method, weight in self.weights.items() if weight is None]

    def places(self, entry: SubjectEntry) -> list[int]:
        """Which of a subject's slices are solved."""
        return list(regular_choice(len(entry.slice_indices), self.slices))

    def planned(self, problems: Sequence[Problem]) -> str:
        """What will be done, in a line. problems: of validation subjects."""
        slices = sum(len(self.places(entry)) for entry in self.entries)
        words = (
            f"{quantity(slices, 'slice')} of {quantity(len(self.entries), 'subject')} of store "
            f"{self.store.name}, by "
            f"{', '.join([self.simple_name, *self.weights])} and the decoder"
        )
        if problems:
            count = sum(len(problem.simple) for problem in problems)
            words += (
                f"; weight of {' and of '.join(self.wanted)} from "
                f"{quantity(count, 'slice')} of {quantity(len(problems), 'validation subject')}"
            )
        return words


def run_simulation(
    study: Simulation, problems: Sequence[Problem], output: Path, parts: Parts
) -> tuple[list[Case], Weights]:
    """Solve all subjects' problems and write their NIfTI files.

    Args:
        study: what is solved.
        problems: of validation subjects, to choose weights by.
        output: folder of the files.
        parts: keeps the SSIM of every weight that is tried, and each subject's images.

    Returns:
        The cases and the weights used.
    """
    with Reporter() as reporter:
        weights = {method: value for method, value in study.weights.items() if value is not None}
        share = 0.05 * len(study.wanted)
        for place, method in enumerate(study.wanted):

            def searched(part: float, place: int = place, method: str = method) -> None:
                reporter.update(0.05 * (place + part), f"weight of {method}")

            searched(0.0)
            weights[method] = choose_weight(method, problems, parts, searched)
        cases, data = [], SliceDataset(study.store, study.entries)
        for number, entry in enumerate(study.entries):
            places = study.places(entry)
            images = data.__getitems__([int(data.first[number]) + place for place in places])

            def solved(part: float, number: int = number) -> None:
                done, count = (number + part) / len(study.entries), len(study.entries)
                reporter.update(share + (1 - share) * done, f"subject {number + 1} of {count}")

            solved(0.0)
            case = _solved(entry, study.degrade(images, number), study, weights,
                           parts, solved)  # fmt: skip
            cases.append(case)
            write_stack(output / entry.subject, case.images[IMAGE], entry, places)
            if case.deviation is not None:
                write_stack(output / entry.subject, case.deviation, entry, places, DEVIATION_FILE)
    return cases, weights


def _solved(
    entry: SubjectEntry,
    problem: Problem,
    study: Simulation,
    weights: Weights,
    parts: Parts,
    progress: Callable[[float], None],
) -> Case:
    """A subject's case, from `parts` where it was solved before."""

    def solve() -> dict[str, Any]:
        case = solve_case(entry.subject, problem, study.simple_name, study.package, weights,
                          study.settings, progress)  # fmt: skip
        return {key: getattr(case, key) for key in FOUND}

    kept = parts.part(f"subject {entry.subject}", solve)
    return Case(entry.subject, problem, **kept, family=entry.family)


def validation_problems(study: Simulation) -> list[Problem]:
    """Problems of validation subjects that are not scored, to choose weights by.

    None where all weights are given. Raises InputError where there is no such subject.
    """
    if not study.wanted:
        return []
    scored = {entry.family for entry in study.entries}
    entries = [e for e in study.store.subjects("validation") if e.family not in scored]
    if not entries:
        raise InputError(
            f"store {study.store.name} has no subjects in split validation to choose weights by: "
            "give them (--tv_weight 0.003 --wavelet_weight 0.003)"
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
    """Write slices of one subject as NIfTI files that lie over its volume, in the volume's unit.

    Where the store does not record that unit they are in [0,1].

    Args:
        folder: of the files.
        images: (n,1,H,W).
        entry: the subject.
        places: which of the entry's slices they are.
        name: of the file, without suffix.

    Returns:
        The paths: one file, or one per slice where their numbers are not evenly spaced.
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
    """Write scores.csv, a row per subject and method, and scores.json, means with intervals.

    record: what else scores.json holds. Returns the methods' means.
    """
    columns, rows = ["subject", "method", "slices", *METRICS], []
    values: dict[str, dict[str, list[float]]] = {}
    for case in cases:
        for method, scores in case.scores.items():
            row = {"subject": case.name, "method": method, "slices": len(case.images[method])}
            rows.append(row | scores)
            for metric, value in scores.items():
                values.setdefault(method, {}).setdefault(metric, []).append(value)
    families = [case.family for case in cases]
    methods = {
        method: aggregate({metric: np.array(found) for metric, found in metrics.items()}, families)
        for method, metrics in values.items()
    }
    write_text(output / "scores.csv", csv_text(rows, columns))
    content = {**record, "subjects": len(cases), "methods": methods}
    coverage = [case.coverage for case in cases if case.coverage is not None]
    if coverage:
        content |= {"error_bars": aggregate({"coverage_90": np.array(coverage)}, families)}
    write_json(output / "scores.json", content)
    return methods


def describe(methods: dict[str, Any], cases: Sequence[Case]) -> str:
    """The methods' means as a table of plain text, and the coverage of the error bars."""
    lines = [f"{'method':24s} {'PSNR, dB':>9s} {'SSIM':>7s} {'NRMSE':>7s}"]
    for method, metrics in methods.items():
        psnr, ssim, nrmse = (metrics[name]["mean"] for name in METRICS)
        lines.append(f"{method:24s} {psnr:9.2f} {ssim:7.4f} {nrmse:7.4f}")
    coverage = [case.coverage for case in cases if case.coverage is not None]
    if coverage:
        share = 100 * np.mean(coverage)
        lines.append(f"{share:.1f}% of the head's pixels lie within their 90% intervals")
    return "\n".join(lines)
