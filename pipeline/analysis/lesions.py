"""Lesions that a decoder could find: some are inserted into healthy held-out subjects.

python -m pipeline lesions --package DIR --store STORE                    -> WORK/lesions
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from data_prep.common.progress import Reporter
from data_prep.common.wording import quantity
from pipeline.analysis import results
from pipeline.analysis.options import LesionsOptions as Options
from pipeline.analysis.options import check_there
from pipeline.errors import InputError
from pipeline.files import csv_text, write_json, write_text


def run(options: Options) -> None:
    """The command. Raises InputError where the inputs do not fit each other."""
    check_there(options)
    import numpy as np
    import torch

    from pipeline.analysis import figures, geometry, inserted, maps, packages
    from pipeline.data.slices import SliceDataset

    decoders = packages.open_decoders(options)
    model = decoders["package"]
    store, entries = packages.unseen_subjects(options, *decoders.values())
    data = SliceDataset(store, entries)
    slices = []
    for number, entry in enumerate(entries):
        chosen = geometry.regular_choice(len(entry.slice_indices), options.slices)
        slices.append(data.__getitems__([int(data.first[number]) + place for place in chosen]))
        if not all(bool((image > 0).any()) for image in slices[-1]):
            raise InputError(f"store {store.name}: a slice of {entry.subject} shows no brain")
    question = results.question_of(
        options,
        decoders=[decoder.metadata["digest"] for decoder in decoders.values()],
        store=store.digest,
    )
    folder = results.folder_of(options, "lesions", store.name, question)
    if results.answered(folder, question):
        return

    def deviations(images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Signed, (n,1,H,W) by method; intensity: from the brain's median."""
        signed = maps.deviations(model, images, options.finest, decoders.get("baseline"))
        middle = torch.stack([image[image > 0].median() for image in images])
        return signed | {"intensity": images - middle.reshape(-1, 1, 1, 1)}

    kinds = [
        inserted.Lesion(diameter, contrast)
        for contrast, diameter in itertools.product(options.contrasts, options.diameters)
    ]
    people, count = quantity(len(entries), "subject"), sum(map(len, slices))
    print(
        f"lesions: {options.repeats} of each of {len(kinds)} kinds in {quantity(count, 'slice')} "
        f"of {people} of store {store.name}",
        flush=True,
    )
    notes = packages.caveats(model, store.simulated, entries)
    for note in notes:
        print(f"note: {note}")
    title = f"Inserted lesions, {people} of store {store.name}"
    title += " (simulated people)" if store.simulated else ""
    with results.answering(folder, question) as draft, Reporter() as reporter:
        reporter.update(0.0, "thresholds of the healthy slices")
        healthy, brain = deviations(torch.cat(slices)), torch.cat(slices) > 0
        limits = {
            (method, side): inserted.threshold_at(
                maps.one_sided(signed, side), brain, options.false_positives
            )
            for method, signed in healthy.items()
            for side in ("dark", "bright")
        }
        for number, (entry, images) in enumerate(zip(entries, slices, strict=True)):
            path = draft / f"{entry.subject}.json"
            if path.exists():
                continue
            repeated = images.repeat(options.repeats, 1, 1, 1)
            inside = repeated > 0
            rows, shown = [], []
            for place, kind in enumerate(kinds):
                reporter.update((number + place / len(kinds)) / len(entries), f"of {entry.subject}")
                random = np.random.default_rng((options.seed, number, place))
                changed, where = inserted.insert(repeated, kind, model.spacing_mm, random)
                tails = {
                    method: maps.one_sided(signed, kind.side)
                    for method, signed in deviations(changed).items()
                }
                for method, tail in tails.items():
                    row = {"subject": entry.subject, "method": method, **asdict(kind)}
                    limit = limits[method, kind.side]
                    row["sensitivity"] = inserted.sensitivity(tail, where, limit)
                    row["auroc"] = maps.detect(tail[inside].numpy(), where[inside].numpy()).auroc
                    rows.append(row)
                middle = len(images) // 2
                seen = {m: (tail * (changed > 0))[middle, 0] for m, tail in tails.items()}
                shown.append((kind, changed[middle, 0], where[middle, 0], seen))
            if number == 0:
                figures.write(draft / "examples.png", figures.examples(shown, limits, title))
            write_json(path, rows)  # last: with it the rest of a subject is whole
        paths = [draft / f"{entry.subject}.json" for entry in entries]
        rows = [row for path in paths for row in json.loads(path.read_text())]
        summary = _summary(rows, {entry.subject: entry.family for entry in entries})
        write_text(draft / "lesions.csv", csv_text(rows))
        drawn = figures.curves(summary, options.false_positives, title)
        figures.write(draft / "curves.png", drawn)
        record = {
            "decoders": {which: packages.record(decoder) for which, decoder in decoders.items()},
            "options": asdict(options),
            "notes": notes,
            "law": model.which,
            "thresholds": {f"{method}, {side}": limit for (method, side), limit in limits.items()},
            "subjects": len(entries),
            "families": len({entry.family for entry in entries}),
            "slices": count,
            "kinds": summary,
        }
        write_json(draft / "lesions.json", record)
        for path in paths:
            path.unlink()
    print(_described(summary, options.false_positives))
    results.print_few(len({entry.family for entry in entries}))
    print(f"table, curves, examples: {folder}")


def _summary(rows: Sequence[Mapping[str, Any]], family: Mapping[str, str]) -> list[dict[str, Any]]:
    """Means over families with their intervals, a row per kind and method."""
    import numpy as np

    from pipeline.metrics.statistics import aggregate

    groups: dict[tuple[str, float, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["diameter"], row["contrast"]), []).append(row)
    summary = []
    for (method, diameter, contrast), mine in groups.items():
        values = {key: np.array([row[key] for row in mine]) for key in ("sensitivity", "auroc")}
        kind = {"method": method, "diameter": diameter, "contrast": contrast}
        summary.append(kind | aggregate(values, [family[row["subject"]] for row in mine]))
    return summary


def _described(summary: Sequence[Mapping[str, Any]], false_positives: float) -> str:
    """Sensitivity by contrast and diameter, a line per method."""
    kinds = dict.fromkeys((row["contrast"], row["diameter"]) for row in summary)
    head = "".join(f"{contrast:+.1f} {diameter:>2g}mm".rjust(10) for contrast, diameter in kinds)
    lines = [
        f"sensitivity at {false_positives:g} false positives a slice, by contrast, diameter",
        f"{'':18s}{head}",
    ]
    for name in dict.fromkeys(row["method"] for row in summary):
        values = [row["sensitivity"]["mean"] for row in summary if row["method"] == name]
        lines.append(f"{name:18s}" + "".join(f"{value:10.2f}" for value in values))
    return "\n".join(lines)
