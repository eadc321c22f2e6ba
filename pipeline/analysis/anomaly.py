"""Anomaly maps of a NIfTI volume: where it is not what the decoder expects.

OUTPUT/anomaly.nii.gz     the whitened residual, or the restoration's change, over the image
OUTPUT/methods.csv        every map's size in the brain and, with lesions, how well it finds them
OUTPUT/overlay.png        some slices with the maps over them
OUTPUT/summary.json       options, image and all scores
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.common.progress import Reporter
from pipeline.analysis import results
from pipeline.analysis.options import AnomalyOptions as Options
from pipeline.analysis.options import check_there
from pipeline.errors import InputError
from pipeline.files import csv_text, write_json, write_text

UNITS = {
    "whitened": "standard deviations",
    "residual": "intensity (0–1)",
    "restoration": "intensity (0–1)",
    "baseline_residual": "intensity (0–1)",
}


def run(options: Options) -> None:
    """Map one volume and write the results. Raises InputError, in one line, for bad input."""
    check_there(options, "image", "mask", "lesions")
    import numpy as np
    import torch

    from pipeline.analysis import figures, maps, packages
    from pipeline.data import volumes

    decoders = packages.open_decoders(options, options.device)
    model, assumed = decoders["package"], options.assume_orientation
    mask = Path(options.mask) if options.mask else None
    volume = volumes.prepare_volume(
        Path(options.image), model.prepare_keys, mask, assume_orientation=assumed
    )
    lesions = None
    if options.lesions:
        lesions = volumes.read_labels(Path(options.lesions), volume, assumed)
    name = volume.path.name
    notes = [f"{name}: {words}" for words in volume.odd]
    if volume.simulated:
        notes.append(f"{name} is of a simulated person, says its header")
    for which, decoder in decoders.items():
        notes += packages.caveats(decoder, volume.simulated)
        if decoder.trained_on(source_sha256=volume.sha256):
            if lesions is not None:
                raise InputError(
                    f"{name} was trained on by the {which}: score an image of another subject, or "
                    "map this one without --lesions"
                )
            notes.append(f"the {which} was trained on {name}")
    question = results.question_of(
        options,
        decoders=[decoder.metadata["digest"] for decoder in decoders.values()],
        image=volume.sha256,
        mask=results.digest_of(options.mask),
        lesions=results.digest_of(options.lesions),
    )
    folder = results.folder_of(options, "anomaly", results.image_name(volume.path), question)
    if results.answered(folder, question):
        return
    for note in notes:
        print(f"note: {note}")

    images = torch.from_numpy(volume.slices.images).to(options.device)
    signed = maps.deviations(model, images, options.finest, decoders.get("baseline"))
    if options.restore_steps:
        with Reporter() as reporter:
            restored = maps.restore(
                model,
                images,
                options.restore_steps,
                progress=lambda part: reporter.update(part, "restoration"),
            )
        signed = {"restoration": images.cpu() - restored, **signed}
    inside = volume.brain & volumes.seen(volume)
    shown = {}
    for method, values in signed.items():
        found = maps.one_sided(values, options.tail)[:, 0].numpy()
        shown[method] = volumes.put_back(found, volume) * inside
    # Intensity needs no model and keeps the volume's own pixels: it is the bar to clear.
    bar = torch.from_numpy(volume.data - np.median(volume.data[inside]))
    rows = []
    for method, mapped in {**shown, "intensity": maps.one_sided(bar, options.tail).numpy()}.items():
        found = mapped[inside]
        row: dict[str, Any] = {"method": method, "mean": float(found.mean())}
        row["p99"] = float(np.quantile(found, 0.99))
        if lesions is not None:
            row |= asdict(maps.detect(found, lesions[inside]))
        rows.append(row)
    chief = next(iter(shown))
    what = f"{chief}, tail: {options.tail}, {UNITS[chief]}"
    summary = {
        "options": asdict(options),
        "decoders": {which: packages.record(decoder) for which, decoder in decoders.items()},
        "image_sha256": volume.sha256,
        "simulated": volume.simulated,
        "notes": notes,
        "law": model.which,
        "map": what,
        "slices": len(volume.slices.indices),
        "slices_like_training": int(volume.like_training.sum()),
        "brain_voxels": int(volume.brain.sum()),
        "brain_seen": float(inside.sum() / volume.brain.sum()),
        "methods": rows,
    }
    if lesions is not None:
        summary["lesion_voxels"] = int(lesions.sum())
        summary["lesion_voxels_seen"] = int((lesions & inside).sum())
    title = f"Anomaly maps of {name}, tail: {options.tail}"
    title += " (simulated person)" if volume.simulated else ""
    labelled = {method: (values, UNITS[method]) for method, values in shown.items()}
    with results.answering(folder, question) as draft:
        volumes.write_like(draft / "anomaly.nii.gz", shown[chief], volume, what)
        drawn = figures.overlay(volume, labelled, inside, lesions, title)
        figures.write(draft / "overlay.png", drawn)
        write_text(draft / "methods.csv", csv_text(rows))
        write_json(draft / "summary.json", summary)
    short = [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows]
    print(csv_text(short).replace(",", "\t"))
    print(f"map, table and figure: {folder}")
