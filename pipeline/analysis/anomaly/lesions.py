"""Which lesions a decoder could find: some are inserted into healthy held-out subjects.

python -m pipeline lesions --package DIR --store STORE                    -> WORK/lesions
"""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from data_prep import quantity
from pipeline.analysis.anomaly.detection import detect
from pipeline.analysis.anomaly.inserted import Lesion, insert, sensitivity, threshold_at
from pipeline.analysis.anomaly.maps import one_sided, reconstructions, slice_maps
from pipeline.analysis.geometry import regular_choice
from pipeline.analysis.packages import (
    Choice,
    check_finest,
    open_package,
    open_prior,
    package_record,
    unseen_subjects,
)
from pipeline.analysis.results import Parts, begin
from pipeline.data.slices import SliceDataset, open_store
from pipeline.decoder_package import DecoderPackage
from pipeline.errors import InputError
from pipeline.figures import write_figure
from pipeline.files import csv_text, work_folder, write_json, write_text
from pipeline.metrics.statistics import aggregate
from pipeline.progress import Reporter

FILES = ["lesions.csv", "lesions.json", "curves.png", "examples.png"]
# Options that decide nothing of the results.
BESIDE = ("output", "threads")


@dataclass(frozen=True)
class Options:
    """Options of the command.

    Args:
        package: the decoder package that models healthy anatomy: a folder, a name under
            WORK/packages, or an address in MLflow.
        store: a prepared store of subjects without lesions.
        split: its subjects: test, validation, or all.
        other_people: the store's subjects are others than those trained on, whatever their names:
            the same file alone is refused.
        slices: slices per subject, evenly spaced about the middle; 0 = all.
        diameters: of the lesions, mm.
        contrasts: of the lesions, in intensities of [0,1]; negative ones are dark.
        baseline: another decoder package, as of a Gaussian VAE, whose |x − x̂| is scored, too.
        finest: side of the finest level whose latents the reconstruction uses; 0 = all. Finer
            levels draw a lesion as they draw anatomy.
        law: of the residuals: fitted, term, or best: fitted where the package has it.
        false_positives: pieces per healthy slice that the threshold of the sensitivity leaves.
        repeats: lesions of each kind in each slice, one at a time.
        batch_size: slices at once.
        seed: of the lesions' places.
        threads: of torch on the CPU; 0 leaves it the choice. Beside other programs 1 is fastest.
        output: folder of the results; WORK/lesions where empty.
    """

    package: str
    store: str
    split: Literal["test", "validation", "all"] = "test"
    other_people: bool = False
    slices: int = 8
    diameters: tuple[float, ...] = (3.0, 6.0, 9.0, 12.0)
    contrasts: tuple[float, ...] = (-0.4, -0.2, 0.2, 0.4)
    baseline: str = ""
    finest: int = 0
    law: Choice = "best"
    false_positives: float = 1.0
    repeats: int = 2
    batch_size: int = 64
    seed: int = 0
    threads: int = 0
    output: str = ""

    def __post_init__(self) -> None:
        for key in ("batch_size", "repeats"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, not {getattr(self, key)}")
        if min(self.slices, self.seed, self.finest, self.threads) < 0:
            raise ValueError("slices, seed, finest and threads must not be negative")
        if not self.false_positives > 0:
            raise ValueError(f"false_positives must be positive, not {self.false_positives}")
        if not self.diameters or not all(0 < d < float("inf") for d in self.diameters):
            raise ValueError(f"diameters must be lengths in mm, not {list(self.diameters)}")
        if not self.contrasts or not all(0 < abs(c) <= 1 for c in self.contrasts):
            raise ValueError(f"contrasts must lie in [-1,1] and not be 0: {list(self.contrasts)}")


Maps = dict[str, Tensor]
Limits = dict[tuple[str, str], float]
# A kind, a slice (H,W), where its lesion is (H,W), and maps by method (H,W).
Shown = tuple[Lesion, Tensor, Tensor, Maps]


def run(options: Options) -> None:
    """The command. Raises InputError where the inputs do not fit each other."""
    if options.threads:
        torch.set_num_threads(options.threads)
    model = open_prior(options.package, options.law)
    baseline = open_package(options.baseline) if options.baseline else None
    for used in filter(None, (model, baseline)):
        check_finest(used, options.finest)
    if model.image_shape[0] != 1:
        raise InputError(f"the decoder draws {model.image_shape[0]} channels: MR images have one")
    store = open_store(options.store, work_folder())
    others = options.other_people
    entries = unseen_subjects(store, model, options.split, other_people=others)
    if baseline is not None:
        unseen_subjects(store, baseline, options.split, other_people=others)
    data = SliceDataset(store, entries)
    slices = []
    for number, entry in enumerate(entries):
        chosen = regular_choice(len(entry.slice_indices), options.slices)
        slices.append(data.__getitems__([int(data.first[number]) + place for place in chosen]))
        if not all(bool((image > 0).any()) for image in slices[-1]):
            raise InputError(f"store {store.name}: a slice of {entry.subject} shows no brain")
    kinds = [Lesion(d, c) for c, d in itertools.product(options.contrasts, options.diameters)]
    methods = ["whitened", "residual", *(["baseline_residual"] if baseline else []), "intensity"]
    print(
        f"lesions: {options.repeats} of each of {len(kinds)} kinds in "
        f"{quantity(sum(map(len, slices)), 'slice')} of {quantity(len(entries), 'subject')} of "
        f"store {store.name}, by {', '.join(methods)}",
        flush=True,
    )
    record: dict[str, Any] = {
        "decoder": package_record(model, options.package),
        "baseline": package_record(baseline, options.baseline) if baseline else None,
        "options": asdict(options),
    }
    inputs = {**record, "store": store.digest}
    inputs["options"] = {k: v for k, v in record["options"].items() if k not in BESIDE}
    output = Path(options.output or work_folder() / "lesions")
    with begin(output, FILES, inputs) as parts:
        search = _Search(model, baseline, kinds, options, parts)
        limits, rows, shown = search([entry.subject for entry in entries], slices)
        summary = _summary(rows, kinds, {entry.subject: entry.family for entry in entries})
        write_text(output / "lesions.csv", csv_text(rows))
        record |= {
            "law": model.which,
            "thresholds": {f"{name}, {side}": value for (name, side), value in limits.items()},
            "subjects": len(entries),
            "slices": sum(map(len, slices)),
            "kinds": summary,
        }
        write_json(output / "lesions.json", record)
        from pipeline.analysis.anomaly.lesion_figures import (  # matplotlib takes a second
            curves,
            examples,
        )

        title = f"Inserted lesions, {quantity(len(entries), 'subject')} of store {store.name}"
        title += " (simulated people)" if store.simulated else ""
        write_figure(output / "curves.png", curves(summary, options.false_positives, title))
        write_figure(output / "examples.png", examples(shown, limits, title))
    print(_described(summary, options.false_positives))
    print(f"table, curves, examples: {output}")


@dataclass(frozen=True)
class _Search:
    """Puts lesions into slices and looks for them; what is finished is kept in `parts`."""

    model: DecoderPackage
    baseline: DecoderPackage | None
    kinds: list[Lesion]
    options: Options
    parts: Parts

    def __call__(
        self, subjects: list[str], slices: list[Tensor]
    ) -> tuple[Limits, list[dict[str, Any]], list[Shown]]:
        """Thresholds, the rows of lesions.csv, and examples; slices (n,1,H,W) by subject."""
        rows, shown = [], []
        with Reporter() as reporter:
            reporter.update(0.0, "thresholds of the healthy slices")
            limits = self.parts.part("thresholds", lambda: self._thresholds(slices))
            for number, (subject, images) in enumerate(zip(subjects, slices, strict=True)):

                def told(part: float, number: int = number) -> None:
                    done = (number + part) / len(subjects)
                    reporter.update(done, f"subject {number + 1} of {len(subjects)}")

                told(0.0)
                found = self.parts.part(
                    f"subject {subject}", partial(self._subject, number, images, limits, told)
                )
                rows += [{"subject": subject, **row} for row in found["rows"]]
                shown += found["shown"]
        kinds = self.kinds
        return limits, rows, [(kinds[place], *example) for place, example in enumerate(shown)]

    def _thresholds(self, slices: list[Tensor]) -> Limits:
        healthy = [_maps(self.model, self.baseline, images, self.options) for images in slices]
        return _limits(healthy, slices, self.options.false_positives)

    def _subject(
        self, number: int, images: Tensor, limits: Limits, told: Callable[[float], None]
    ) -> dict[str, Any]:
        """A subject's rows, a kind and method each, and examples of the first subject."""
        rows, shown = [], []
        repeated = images.repeat(self.options.repeats, 1, 1, 1)
        for place, kind in enumerate(self.kinds):
            random = np.random.default_rng((self.options.seed, number, place))
            changed, where = insert(repeated, kind, self.model.spacing_mm, random)
            maps = _maps(self.model, self.baseline, changed, self.options)
            rows += _rows(kind, maps, where, repeated, limits)
            if number == 0:
                middle = len(images) // 2
                tails = {name: (_tail(m, kind) * (changed > 0))[middle, 0].clone()
                         for name, m in maps.items()}  # fmt: skip
                shown.append((changed[middle, 0].clone(), where[middle, 0].clone(), tails))
            told((place + 1) / len(self.kinds))
        return {"rows": rows, "shown": shown}


@torch.no_grad()
def _maps(
    model: DecoderPackage, baseline: DecoderPackage | None, images: Tensor, options: Options
) -> Maps:
    """Signed deviations of images (n,1,H,W) by method; intensity: from the brain's median."""

    def quiet(_: float, __: str) -> None: ...

    found = slice_maps(model, images, options.batch_size, quiet, options.finest)
    maps = {"whitened": found.whitened, "residual": found.residual}
    if baseline is not None:
        other = reconstructions(baseline, images, options.batch_size, quiet, options.finest)
        maps["baseline_residual"] = images - other
    middle = torch.stack([image[image > 0].median() for image in images])
    maps["intensity"] = images - middle.reshape(-1, 1, 1, 1)
    return maps


def _tail(signed: Tensor, kind: Lesion) -> Tensor:
    return one_sided(signed, kind.side)


def _limits(healthy: list[Maps], slices: list[Tensor], false_positives: float) -> Limits:
    """The threshold of each method and side on the healthy slices of all subjects."""
    brain = torch.cat(slices) > 0
    return {
        (name, side): threshold_at(
            one_sided(torch.cat([maps[name] for maps in healthy]), side), brain, false_positives
        )
        for name in healthy[0]
        for side in ("dark", "bright")
    }


def _rows(
    kind: Lesion, maps: Maps, where: Tensor, healthy: Tensor, limits: Limits
) -> list[dict[str, Any]]:
    brain = healthy > 0
    rows = []
    for name, signed in maps.items():
        score = _tail(signed, kind)
        found = detect(score[brain].double().numpy(), where[brain].numpy())
        rows.append(
            {
                "method": name,
                **asdict(kind),
                "sensitivity": sensitivity(score, where, limits[name, kind.side]),
                "auroc": found.auroc,
            }
        )
    return rows


def _summary(
    rows: list[dict[str, Any]], kinds: list[Lesion], family: dict[str, str]
) -> list[dict[str, Any]]:
    """Means over families with their intervals, a row per kind and method."""
    found = []
    for kind, name in itertools.product(kinds, dict.fromkeys(row["method"] for row in rows)):
        mine = [
            row for row in rows
            if row["method"] == name and (row["diameter"], row["contrast"]) == (
                kind.diameter, kind.contrast)
        ]  # fmt: skip
        values = {key: np.array([row[key] for row in mine]) for key in ("sensitivity", "auroc")}
        families = [family[row["subject"]] for row in mine]
        found.append({"method": name, **asdict(kind), **aggregate(values, families)})
    return found


def _described(summary: list[dict[str, Any]], false_positives: float) -> str:
    """Sensitivity by contrast and diameter, a line per method."""
    kinds = list(dict.fromkeys((row["contrast"], row["diameter"]) for row in summary))
    head = "".join(f"{contrast:+.1f} {diameter:>2g}mm".rjust(10) for contrast, diameter in kinds)
    lines = [f"sensitivity at {false_positives:g} false positives a slice, by contrast, diameter",
             f"{'':18s}{head}"]  # fmt: skip
    for name in dict.fromkeys(row["method"] for row in summary):
        values = [row["sensitivity"]["mean"] for row in summary if row["method"] == name]
        lines.append(f"{name:18s}" + "".join(f"{value:10.2f}" for value in values))
    return "\n".join(lines)
