"""The options that reconstruct and restore share, and how both solve a stated problem."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from data_prep import command
from pipeline.analysis.geometry import Picture, read_array, write_picture
from pipeline.analysis.inverse.problem import (
    IMAGE,
    TV,
    WAVELETS,
    Case,
    Degrade,
    Problem,
    solve_case,
)
from pipeline.analysis.inverse.solver import SolverSettings
from pipeline.analysis.inverse.study import (
    DEVIATION_FILE,
    IMAGE_FILE,
    Simulation,
    describe,
    files_of,
    run_simulation,
    validation_problems,
    write_scores,
)
from pipeline.analysis.packages import Choice, package_record, unseen_subjects
from pipeline.analysis.results import begin
from pipeline.data.slices import Store, open_store
from pipeline.decoder_package import DecoderPackage
from pipeline.figures import write_figure
from pipeline.files import work_folder
from pipeline.progress import Reporter


@dataclass(frozen=True)
class StudyOptions:
    """Which decoder, which images, how long the search takes, where the results go."""

    package: str = ""
    """Decoder package: a folder, a name under WORK/packages, or an address in MLflow."""
    store: str = ""
    """A prepared store, whose slices are degraded here and scored."""
    split: Literal["validation", "test", "all"] = "test"
    """Subjects of the store."""
    subject: str = ""
    """One subject of the store in place of a split."""
    other_people: bool = False
    """The store's subjects are others than those trained on, whatever their names: the same file
    alone is refused."""
    slices: int = 4
    """Slices per subject, evenly spaced about the middle; 0 = all."""
    image: str = ""
    """A NIfTI file of one slice."""
    scale: float = 0.0
    """Of a single slice: the value that is intensity 1; 0 = the 99.5th percentile in the head."""
    noise: float = 0.0
    """Standard deviation of the noise, in intensities of [0,1]."""
    tv_weight: float | None = None
    """Weight of total variation; null = the best SSIM on validation subjects, for a single slice
    the choice on OASIS."""
    wavelet_weight: float | None = None
    """Weight of the wavelets' details, chosen in the same way."""
    latent_steps: int = 80
    """Steps of the latent phase, for each restart."""
    image_steps: int = 60
    """Steps of the image phase."""
    restarts: int = 1
    """Starts of the latent phase: the encoder of a simple guess, then draws from the prior."""
    samples: int = 8
    """Draws from the posterior, for a standard deviation of each pixel; 0 = none."""
    law: Choice = "best"
    """The law of the decoder's residuals: fitted, term, or best: fitted where there is one."""
    support: bool = False
    """Keep the image to where the decoder draws tissue."""
    seed: int = 0
    """Of masks, noise and restarts."""
    threads: int = 0
    """Of torch on the CPU; 0 leaves it the choice. Beside other programs 1 is the fastest."""
    output: str = ""
    """Folder of the results; "" = one under WORK."""

    def __post_init__(self) -> None:
        if not self.package:
            export = command("export", run="…")
            raise ValueError(f"no decoder given: use --package DIR ({export} writes one)")
        least = {"restarts": 1.0}
        for name, value in asdict(self).items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and not (np.isfinite(value) and value >= least.get(name, 0)):
                raise ValueError(f"{name} must be at least {least.get(name, 0):g}, not {value}")
        if self.samples == 1:
            raise ValueError("one draw has no standard deviation: give samples 0, or at least 2")

    @property
    def weights(self) -> dict[str, float | None]:
        """Of the classical methods; None: to be chosen."""
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


# Options that decide nothing of the results, and those that name files, whose content does.
BESIDE = ("output", "threads")
FILES = ("mask", "sensitivities")


@dataclass(frozen=True)
class Slice:
    """A single slice to solve.

    name: of the file it came from; picture: what it lies over; affine (4,4) of the result, (row,
    column, 0, 1) to RAS mm; unit: the file's intensity that is 1.
    """

    name: str
    picture: Picture
    affine: np.ndarray
    problem: Problem
    unit: float


@dataclass(frozen=True)
class Task:
    """reconstruct or restore. simple: name of the method without a prior; folder: under WORK;
    weight: of TV and wavelets for a single slice, where there are no subjects to choose it by."""

    name: str
    title: str
    simple: str
    folder: str
    weight: float


def carry_out(
    task: Task,
    options: StudyOptions,
    package: DecoderPackage,
    degrade: Degrade,
    read: Callable[[], Slice],
    measured: str,
) -> None:
    """Solve a store's problems, as `degrade` makes them, or that of the single slice of `read`.

    Writes scores.csv and .json, comparison.png and the NIfTI files. `measured` says how the images
    were measured, for the line at the start.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    output = Path(options.output or work_folder() / task.folder)
    record: dict[str, Any] = {
        "decoder": package_record(package, options.package),
        "options": asdict(options),
    }
    if options.store:
        store = open_store(options.store, work_folder())
        entries = unseen_subjects(
            store, package, options.split, options.subject, options.other_people
        )
        study = Simulation(
            store, entries, package, degrade, task.simple,
            options.slices, options.weights, options.solver,
        )  # fmt: skip
        problems = validation_problems(study)
        print(f"{task.name}, {measured}: {study.planned(problems)}", flush=True)
        name = f"store {store.name}" + (" (simulated people)" if store.simulated else "")
        with begin(output, files_of(entries), _inputs(task, options, record, store)) as parts:
            cases, weights = run_simulation(study, problems, output, parts)
            _finish(task, output, cases, {**record, "weights": weights}, name)
        return
    single = read()
    weights = {
        method: task.weight if given is None else given for method, given in options.weights.items()
    }
    print(f"{task.name}, {measured}: 1 slice, {single.name}, by {', '.join(weights)} (weights "
          f"{', '.join(f'{weight:g}' for weight in weights.values())}) and the decoder",
          flush=True)  # fmt: skip
    begin(output, files_of())
    with Reporter() as reporter:
        reporter.update(0.0, task.title.lower())
        case = solve_case(
            "slice", single.problem, task.simple, package, weights, options.solver,
            lambda part: reporter.update(part, task.title.lower()),
        )  # fmt: skip
    for file, found in ((IMAGE_FILE, case.images[IMAGE]), (DEVIATION_FILE, case.deviation)):
        if found is not None:
            values = found[0, 0].double().numpy() * single.unit
            write_picture(output / f"{file}.nii.gz", values, single.affine, single.picture)
    record |= {"scale": single.unit, "weights": weights}
    _finish(task, output, [case], record, single.name)


def _inputs(
    task: Task, options: StudyOptions, record: dict[str, Any], store: Store
) -> dict[str, Any]:
    """All that decides the results of a study, by content where it is a file."""
    values = asdict(options)
    return {
        "task": task.name,
        "options": {key: value for key, value in values.items() if key not in BESIDE},
        "files": [
            hashlib.sha256(read_array(Path(values[key])).tobytes()).hexdigest()
            for key in FILES
            if values.get(key)
        ],
        "decoder": record["decoder"],
        "store": store.digest,
    }


def _finish(
    task: Task, output: Path, cases: Sequence[Case], record: dict[str, Any], name: str
) -> None:
    """Write the tables and the figure, and print the means."""
    methods = write_scores(output, cases, record)
    from pipeline.analysis.inverse.figures import comparison  # matplotlib takes a second

    write_figure(output / "comparison.png", comparison(cases, f"{task.title}s of {name}"))
    if methods:
        print(describe(methods, cases))
    print(f"images, scores, figure: {output}")
