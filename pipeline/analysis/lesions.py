"""Lesions that a decoder could find: some are inserted into healthy held-out subjects.

python -m pipeline lesions --package DIR --store STORE                    -> WORK/lesions

A decoder can be tested before it meets patients only where the answer is known: a disc of one
contrast and diameter, its edge softened by the pixels, is put into the brain of a healthy subject.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import ndimage
from torch import Tensor

from data_prep.common.progress import Reporter
from data_prep.common.wording import quantity
from pipeline.analysis import anomaly, jobs
from pipeline.analysis.jobs import LesionsOptions as Options
from pipeline.analysis.problems import regular_choice
from pipeline.data.slices import SliceDataset, evenly_spread
from pipeline.errors import InputError
from pipeline.figures import bare, mark_sides, write_figure
from pipeline.files import csv_text, write_json, write_text
from pipeline.metrics.statistics import aggregate, few

# Sub-pixels per side by which the share of a pixel within the disc is counted.
FINE = 25
THRESHOLDS = 400
EIGHT = np.ones((3, 3), int)
COLOURS = {
    "whitened": "#0072B2",
    "residual": "#D55E00",
    "baseline_residual": "#009E73",
    "intensity": "0.45",
}


Side = Literal["dark", "bright"]


class Lesion(NamedTuple):
    """diameter in mm; contrast in intensity, negative: darker than what was there."""

    diameter: float
    contrast: float

    @property
    def side(self) -> Side:
        """The side of what was there on which it stands out."""
        return "dark" if self.contrast < 0 else "bright"


def run(options: Options) -> None:
    """The command. Raises InputError where the inputs do not fit each other."""
    decoders = jobs.open_decoders(options)
    model = decoders["package"]
    store, entries = jobs.unseen_subjects(options, *decoders.values())
    data, slices = SliceDataset(store, entries), []
    for number, entry in enumerate(entries):
        chosen = regular_choice(len(entry.slice_indices), options.slices)
        slices.append(data.__getitems__([int(data.first[number]) + place for place in chosen]))
        if not all(bool((image > 0).any()) for image in slices[-1]):
            raise InputError(f"store {store.name}: a slice of {entry.subject} shows no brain")

    def deviations(images: Tensor) -> dict[str, Tensor]:
        """Signed, (n,1,H,W) by method; intensity: from the brain's median."""
        signed = anomaly.deviations(model, images, options.finest, decoders.get("baseline"))
        middle = torch.stack([image[image > 0].median() for image in images])
        return signed | {"intensity": images - middle.reshape(-1, 1, 1, 1)}

    pairs = itertools.product(options.contrasts, options.diameters)
    kinds = [Lesion(diameter, contrast) for contrast, diameter in pairs]
    people, count = quantity(len(entries), "subject"), sum(map(len, slices))
    notes = jobs.caveats(model, store.simulated, entries)
    title = f"Inserted lesions, {people} of store {store.name}"
    title += " (simulated people)" if store.simulated else ""
    named = jobs.named_folder(options, "lesions", store.name)
    there = jobs.results(options, named, decoders.values(), "lesions.json", store.digest)
    with there as folder, Reporter() as reporter:
        if folder is None:
            return
        print(
            f"lesions: {options.repeats} of each of {len(kinds)} kinds in "
            f"{quantity(count, 'slice')} of {people} of store {store.name}",
            *(f"note: {note}" for note in notes),
            sep="\n",
            flush=True,
        )
        reporter.update(0.0, "thresholds of the healthy slices")
        healthy, brain = deviations(torch.cat(slices)), torch.cat(slices) > 0
        sides: tuple[Side, ...] = ("dark", "bright")
        limits = {
            (method, side): threshold_at(
                anomaly.one_sided(signed, side), brain, options.false_positives
            )
            for method, signed in healthy.items()
            for side in sides
        }
        for number, (entry, images) in enumerate(zip(entries, slices, strict=True)):
            path = folder / "subjects" / f"{entry.subject}.json"
            if path.exists():
                continue
            repeated = images.repeat(options.repeats, 1, 1, 1)
            inside, middle = (repeated > 0).numpy(), len(images) // 2
            rows, shown = [], []
            for place, kind in enumerate(kinds):
                reporter.update((number + place / len(kinds)) / len(entries), f"of {entry.subject}")
                random = np.random.default_rng((options.seed, number, place))
                changed, where = insert(repeated, kind, model.spacing_mm, random)
                pictures = [changed[middle, 0]]
                for method, signed in deviations(changed).items():
                    tail, limit = anomaly.one_sided(signed, kind.side), limits[method, kind.side]
                    row = {"subject": entry.subject, "method": method, **kind._asdict()}
                    row["sensitivity"] = sensitivity(tail, where, limit)
                    scores = anomaly.detect(tail.numpy()[inside], where.numpy()[inside])
                    rows.append(row | {"auroc": scores["auroc"]})
                    pictures.append((tail * (changed > 0))[middle, 0] / (2 * limit))
                shown.append((kind, where[middle, 0], pictures))
            if number == 0:
                figure = examples(shown, list(healthy), title, model.plane)
                write_figure(folder / "examples.png", figure)
            write_json(path, rows)  # last: with it the rest of a subject is whole
        rows = []
        for entry in entries:
            rows += json.loads((folder / "subjects" / f"{entry.subject}.json").read_text())
        summary = summarised(rows, {entry.subject: entry.family for entry in entries})
        write_text(folder / "lesions.csv", csv_text(rows))
        write_figure(folder / "curves.png", curves(summary, options.false_positives, title))
        families = len({entry.family for entry in entries})
        record = {
            "decoders": {which: jobs.record(decoder) for which, decoder in decoders.items()},
            "options": vars(options),
            "notes": notes,
            "law": model.which,
            "thresholds": {f"{method}, {side}": limit for (method, side), limit in limits.items()},
            "subjects": len(entries),
            "families": families,
            "slices": count,
            "kinds": summary,
        }
        write_json(folder / "lesions.json", record)
    print(described(summary, options.false_positives))
    if note := few(families):
        print(f"note: {note}")
    print(f"table, curves, examples: {folder}")


# Lesions, and how well a map finds them


def share(shape: tuple[int, int], centre: tuple[int, int], diameter: float) -> np.ndarray:
    """The share of each pixel within a disc: (H,W) in [0,1], summing to its area in pixels.

    centre: row and column of a pixel, in whose middle the disc's centre lies; diameter in pixels.
    """
    offsets = (np.arange(FINE) + 0.5) / FINE - 0.5
    reach = math.ceil(diameter / 2) + 1
    around = np.arange(-reach, reach + 1)
    fine = (around[:, None] + offsets).reshape(-1)
    inside = fine[:, None] ** 2 + fine**2 <= (diameter / 2) ** 2
    covered = np.zeros((shape[0] + 2 * reach, shape[1] + 2 * reach))
    rows, columns = (slice(c, c + len(around)) for c in centre)
    covered[rows, columns] = inside.reshape(len(around), FINE, -1, FINE).mean(axis=(1, 3))
    return covered[reach:-reach, reach:-reach]


def place(image: np.ndarray, diameter: float, random: np.random.Generator) -> tuple[int, int]:
    """Row and column for a lesion wholly within the brain of an image (H,W), at random.

    Where no pixel is that far from the surround: one of those that are furthest from it.
    """
    depth = ndimage.distance_transform_edt(np.pad(image > 0, 1))[1:-1, 1:-1]
    deep = np.argwhere(depth > min(diameter / 2 + 1, depth.max() - 1e-9))
    row, column = deep[random.integers(len(deep))]
    return int(row), int(column)


def insert(
    images: Tensor, lesion: Lesion, spacing: float, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Put one lesion into each image (n,1,H,W) in [0,1]; spacing: mm per pixel.

    Returns the changed images, still in [0,1], and where their lesions are, (n,1,H,W) bool: pixels
    half covered by the disc, and the one in its centre.
    """
    changed, where = images.clone(), torch.zeros_like(images, dtype=torch.bool)
    diameter, (height, width) = lesion.diameter / spacing, images.shape[-2:]
    for k, image in enumerate(images[:, 0].numpy()):
        centre = place(image, diameter, random)
        covered = share((height, width), centre, diameter)
        changed[k, 0] += torch.from_numpy(lesion.contrast * covered).to(images.dtype)
        where[k, 0] = torch.from_numpy(covered >= 0.5)
        where[k, 0][centre] = True
    return changed.clamp(0, 1), where


def threshold_at(maps: Tensor, brain: Tensor, false_positives: float) -> float:
    """The threshold at which maps of healthy slices (n,1,H,W) show so many false positives a slice.

    A false positive is a piece of the brain's pixels above it that touch, be it at corners. The
    least that leaves at most so many is taken, of 400 between the maps' median and maximum.
    """
    values = torch.where(brain, maps, 0)[:, 0].numpy()
    inside = values[brain[:, 0].numpy()]
    shares = 1 - np.geomspace(0.5, 0.5 / max(len(inside), 2), THRESHOLDS)
    threshold = math.inf
    for lower in np.unique(np.quantile(inside, np.append(shares, 1.0)))[::-1]:
        pieces = sum(ndimage.label(image > lower, EIGHT)[1] for image in values)
        if pieces > false_positives * len(values):
            break
        threshold = float(lower)
    return threshold


def sensitivity(maps: Tensor, where: Tensor, threshold: float) -> float:
    """The share of slices (n,1,H,W) whose lesion shows: one pixel of it above the threshold."""
    largest = torch.where(where, maps, -torch.inf).flatten(1).amax(dim=1)
    return float((largest > threshold).double().mean())


# Summary and figures


def summarised(
    rows: Sequence[Mapping[str, Any]], family: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Means over families with their intervals, a row per kind and method."""
    summary, keys = [], ["method", "diameter", "contrast"]
    for kind, mine in pd.DataFrame(rows).groupby(keys, sort=False):
        values = {key: mine[key].to_numpy() for key in ("sensitivity", "auroc")}
        families = [family[subject] for subject in mine["subject"]]
        summary.append(dict(zip(keys, kind, strict=True)) | aggregate(values, families))
    return summary


def described(summary: Sequence[Mapping[str, Any]], false_positives: float) -> str:
    """Sensitivity by contrast and diameter, a line per method."""
    kinds = dict.fromkeys((row["contrast"], row["diameter"]) for row in summary)
    head = "".join(f"{contrast:+.1f} {diameter:>2g}mm".rjust(10) for contrast, diameter in kinds)
    lines = [f"sensitivity at {false_positives:g} false positives a slice, by contrast, diameter"]
    lines.append(f"{'':18s}{head}")
    for name in dict.fromkeys(row["method"] for row in summary):
        values = [row["sensitivity"]["mean"] for row in summary if row["method"] == name]
        lines.append(f"{name:18s}" + "".join(f"{value:10.2f}" for value in values))
    return "\n".join(lines)


def curves(summary: Sequence[Mapping[str, Any]], false_positives: float, title: str) -> Figure:
    """Sensitivity and AUROC over the diameter: a column per contrast, a line per method.

    summary: `kinds` of lesions.json. Bands: 95% intervals over families.
    """
    contrasts = list(dict.fromkeys(row["contrast"] for row in summary))
    figure = Figure(figsize=(2.9 * len(contrasts) + 0.6, 5.6), layout="constrained")
    grid = figure.subplots(2, len(contrasts), sharey="row", squeeze=False)
    names = {"sensitivity": f"sensitivity at {false_positives:g}\nfalse positives a slice"}
    for row, (key, label) in enumerate((names | {"auroc": "AUROC of pixels"}).items()):
        grid[row, 0].set_ylabel(label)
        for axes, contrast in zip(grid[row], contrasts, strict=True):
            for name in dict.fromkeys(row["method"] for row in summary):
                mine = [r for r in summary if r["method"] == name and r["contrast"] == contrast]
                mine.sort(key=lambda row: row["diameter"])
                at, parts = [row["diameter"] for row in mine], ("mean", "low", "high")
                mean, low, high = (np.array([r[key][p] for r in mine], float) for p in parts)
                axes.plot(at, mean, ".-", color=COLOURS[name], label=name)
                axes.fill_between(at, low, high, color=COLOURS[name], alpha=0.15, lw=0)
            axes.grid(alpha=0.3)
            if key == "auroc":
                axes.axhline(0.5, color="0.3", ls=":", lw=1)  # chance
            axes.set_ylim(*((-0.02, 1.02) if key == "sensitivity" else (0.3, 1.02)))
            axes.set_title(f"{Lesion(0, contrast).side}, contrast {contrast:+g}", fontsize=10)
            axes.set_xlabel("diameter, mm")
    grid[0, 0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def examples(
    shown: Sequence[tuple[Lesion, Tensor, Sequence[Tensor]]],
    methods: Sequence[str],
    title: str,
    plane: str = "",
) -> Figure:
    """Up to four kinds: the slice, and every map up to twice its threshold.

    shown: kind, where its lesion is (H,W), slice and maps (H,W) over twice their thresholds.
    """
    chosen = [shown[number] for number in evenly_spread(len(shown), 4)]
    size = (1.9 * (1 + len(methods)) + 0.4, 2.0 * len(chosen) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(chosen), 1 + len(methods), squeeze=False)
    for row, (kind, where, pictures) in zip(grid, chosen, strict=True):
        for axes, values in zip(row, pictures, strict=True):
            colours = "gray" if axes is row[0] else "magma"
            axes.imshow(values.numpy(), cmap=colours, vmin=0, vmax=1)
            axes.contour(where.numpy(), levels=[0.5], colors="#56B4E9", linewidths=1)
            bare(axes)
        mark_sides(row[0], plane)
        row[0].set_ylabel(f"{kind.diameter:g} mm, {kind.contrast:+g}", fontsize=8)
    for axes, name in zip(grid[0], ["slice with a lesion", *methods], strict=True):
        axes.set_title(name, fontsize=9)
    figure.suptitle(f"{title}\n(blue: the lesion; maps up to twice their threshold)", fontsize=10)
    return figure
