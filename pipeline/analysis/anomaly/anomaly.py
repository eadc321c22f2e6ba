"""Anomaly maps of a NIfTI volume: where it is not what the decoder expects.

OUTPUT/anomaly.nii.gz     the whitened residual (or the restoration's change), over the image
OUTPUT/methods.csv        every map's size in the brain and, with lesions, how well it finds them
OUTPUT/slices.csv         a row per slice
OUTPUT/overlay.png        some slices with the maps over them
OUTPUT/summary.json       options, image and all scores, written last
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.analysis.anomaly.figures import overlay, slices_to_show
from pipeline.analysis.anomaly.maps import (
    SliceMaps,
    Tail,
    one_sided,
    reconstructions,
    slice_maps,
)
from pipeline.analysis.anomaly.restoration import restore
from pipeline.analysis.packages import Choice, check_finest, open_package, open_prior
from pipeline.analysis.results import begin
from pipeline.data.intensity import to_scanner
from pipeline.data.volumes import (
    PreparedVolume,
    differing,
    prepare_volume,
    put_back,
    read_contrast,
    read_labels,
    seen,
    write_like,
)
from pipeline.decoder_package import DecoderPackage
from pipeline.errors import InputError
from pipeline.figures import write_figure
from pipeline.files import csv_text, work_folder, write_json, write_text
from pipeline.progress import Reporter

TAILS: tuple[Tail, ...] = ("both", "dark", "bright")

UNITS = {
    "whitened": "standard deviations",
    "residual": "intensity (0–1)",
    "restoration": "intensity (0–1)",
    "baseline_residual": "intensity (0–1)",
    "intensity": "distance from the brain's median, intensity (0–1)",
}

# All that a run may write; the maps by their names, whichever it writes.
FILES = [
    "summary.json", "methods.csv", "slices.csv", "overlay.png",
    *(f"{name}.nii.gz" for name in ("anomaly", "reconstruction", *UNITS)),
]  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Options of the command.

    Args:
        package: the decoder package that models healthy anatomy: its folder, its name under
            WORK/packages, or its address in MLflow.
        image: the volume, .nii or .nii.gz, skull-stripped or with a mask.
        output: folder of the results; WORK/anomaly/NAME of the image where empty.
        mask: brain mask on the image's grid; where empty the brain is where the image is above 0.
        assume_orientation: where the axes of a file run to whose header does not say (sform and
            qform codes 0, Analyze), such as RAS or LAS; where empty such a file is refused.
        lesions: mask of lesions on the image's grid, to score the maps against.
        beside: other contrasts of the same head on the image's grid, such as FLAIR, with commas
            between: their intensity alone is scored, too.
        baseline: another decoder package, as of a Gaussian VAE, whose |x − x̂| is scored, too.
        law: of the decoder's residuals, in whose standard deviations the maps are: fitted, term,
            or best: fitted where the package has it.
        finest: side of the finest level whose latents the reconstructions use, the baseline's, too;
            0 = all. Finer levels draw a lesion as they draw anatomy.
        tail: deviations that anomaly.nii.gz shows: both, only dark, or only bright ones.
        restore_steps: steps of gradient ascent on the posterior, 100 or so: a step changes a pixel
            by at most about 0.01; 0 leaves the restoration out. With it anomaly.nii.gz is what
            the restoration changed.
        restore_tv: weight of the restoration's total variation, in standard deviations of the
            likelihood.
        all_maps: write the volume of every method and the reconstruction, too.
        batch_size: slices at once.
        device: cpu or cuda.
        threads: of torch on the CPU; 0 leaves it the choice.
    """

    package: str
    image: str
    output: str = ""
    mask: str = ""
    assume_orientation: str = ""
    lesions: str = ""
    beside: str = ""
    baseline: str = ""
    law: Choice = "best"
    finest: int = 0
    tail: Tail = "both"
    restore_steps: int = 0
    restore_tv: float = 1.0
    all_maps: bool = False
    batch_size: int = 32
    device: str = "cpu"
    threads: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be above 0, not {self.batch_size}")
        for key in ("restore_steps", "threads", "restore_tv", "finest"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{key} must not be negative, not {value}")

    @property
    def folder(self) -> Path:
        """Where the results go."""
        if self.output:
            return Path(self.output)
        name = re.sub(r"(\.nii|\.hdr|\.img)?(\.gz)?$", "", Path(self.image).name, flags=re.I)
        return work_folder() / "anomaly" / name


@dataclass(frozen=True)
class Inputs:
    """What a run reads.

    lesions: (X,Y,Z) bool on the volume's canonical grid; beside: other contrasts (X,Y,Z) by name,
    in their file's unit.
    """

    model: DecoderPackage
    baseline: DecoderPackage | None
    volume: PreparedVolume
    lesions: np.ndarray | None
    beside: dict[str, np.ndarray]

    @property
    def trained_on(self) -> dict[str, bool]:
        """Which of package and baseline were trained on the volume's file."""
        packages = {"package": self.model, "baseline": self.baseline}
        return {
            name: package is not None and package.trained_on(source_sha256=self.volume.sha256)
            for name, package in packages.items()
        }


def run(options: Options) -> None:
    """Map one volume and write the results. Raises InputError, in one line, for bad input."""
    if options.threads:
        torch.set_num_threads(options.threads)
    inputs = _read(options)
    _check_unseen(inputs)
    summary = options.folder / "summary.json"
    if not options.output and summary.exists():
        _check_same_image(summary, inputs.volume.sha256)
    begin(options.folder, FILES)
    maps, signed = _map(inputs, options)
    _write(options, inputs, maps, signed)


def _read(options: Options) -> Inputs:
    model = open_prior(options.package, options.law, options.device)
    assumed = options.assume_orientation
    volume = prepare_volume(
        Path(options.image),
        model.prepare_keys,
        Path(options.mask) if options.mask else None,
        assume_orientation=assumed,
    )
    if volume.simulated:
        print(f"note: {volume.path.name} is of a simulated person, says its header")
    for words in volume.odd:
        print(f"note: {volume.path.name}: {words}")
    lesions = read_labels(Path(options.lesions), volume, assumed) if options.lesions else None
    others = [Path(word.strip()) for word in options.beside.split(",") if word.strip()]
    beside = {path.name.partition(".")[0]: read_contrast(path, volume, assumed) for path in others}
    baseline = open_package(options.baseline, options.device) if options.baseline else None
    if options.finest:
        for used in filter(None, (model, baseline)):
            check_finest(used, options.finest)
    if baseline is not None:
        _check_alike(model, baseline)
    return Inputs(model, baseline, volume, lesions, beside)


def _check_unseen(inputs: Inputs) -> None:
    """Say that the image was trained on; raise InputError where it is to be scored."""
    name = inputs.volume.path.name
    if seen_by := " and ".join(package for package, seen in inputs.trained_on.items() if seen):
        if inputs.lesions is not None:
            raise InputError(
                f"{name} was trained on by the {seen_by}: score an image of another subject, or "
                "map this one without --lesions"
            )
        print(f"note: the {seen_by} was trained on {name}")


def _check_same_image(summary: Path, sha256: str) -> None:
    """Raise InputError where `summary` is of another image: HCP's files share their names."""
    try:
        found = json.loads(summary.read_text("utf-8"))["image_sha256"]
    except (ValueError, KeyError, TypeError):
        return  # cut off, so no result
    if found != sha256:
        raise InputError(
            f"{summary.parent} holds the maps of another image of this name: choose another folder "
            "with --output"
        )


def _check_alike(model: DecoderPackage, baseline: DecoderPackage) -> None:
    other = differing(model.prepare_keys, baseline.prepare_keys)
    if other:
        raise InputError(f"the baseline's images were prepared with another {', '.join(other)}")


def _map(inputs: Inputs, options: Options) -> tuple[SliceMaps, dict[str, torch.Tensor]]:
    """The model's maps, and signed deviations (n,1,H,W) by method, the chief one first."""
    images = torch.from_numpy(inputs.volume.slices.images).to(options.device)
    size, finest = options.batch_size, options.finest
    with Reporter() as reporter:
        maps = slice_maps(inputs.model, images, size, reporter.update, finest)
        signed = {"whitened": maps.whitened, "residual": maps.residual}
        if options.restore_steps:
            restored = restore(
                inputs.model,
                images,
                steps=options.restore_steps,
                tv=options.restore_tv,
                batch_size=size,
                progress=reporter.update,
            )
            signed = {"restoration": images.cpu() - restored, **signed}
        if inputs.baseline is not None:
            other = reconstructions(inputs.baseline, images, size, reporter.update, finest)
            signed["baseline_residual"] = images.cpu() - other
    return maps, signed


def _write(
    options: Options, inputs: Inputs, maps: SliceMaps, signed: dict[str, torch.Tensor]
) -> None:
    folder, volume, lesions = options.folder, inputs.volume, inputs.lesions
    inside = volume.brain & seen(volume)
    rows, shown = [], {}
    for name, values in signed.items():
        for tail in TAILS:
            mapped = put_back(one_sided(values, tail)[:, 0].numpy(), volume) * inside
            rows.append(_row(name, tail, mapped, inside, lesions))
            if tail == options.tail:
                shown[name] = mapped
    # Intensity needs no model and keeps the volume's own pixels: it is the bar to clear.
    bars = {"intensity": volume.data}
    bars |= {f"intensity of {name}": contrast for name, contrast in inputs.beside.items()}
    for name, contrast in bars.items():
        deviation = torch.from_numpy(contrast - np.median(contrast[inside]))
        for tail in TAILS:
            mapped = one_sided(deviation, tail).numpy() * inside
            rows.append(_row(name, tail, mapped, inside, lesions))
    chief = next(iter(shown))
    what = f"{chief}, {options.tail} tail, {UNITS[chief]}"
    write_like(folder / "anomaly.nii.gz", shown[chief], volume, what)
    if options.all_maps:
        for name, mapped in shown.items():
            write_like(folder / f"{name}.nii.gz", mapped, volume, f"{name}, {UNITS[name]}")
        back = put_back(maps.reconstruction[:, 0].numpy(), volume)
        back = to_scanner(back, volume.low, volume.high)
        write_like(folder / "reconstruction.nii.gz", back, volume, "reconstruction, file's unit")
    write_figure(folder / "overlay.png", _figure(volume, shown, inside, lesions, options))
    write_text(folder / "methods.csv", csv_text(rows))
    write_text(folder / "slices.csv", csv_text(_slice_rows(volume, maps, lesions)))
    summary: dict[str, Any] = {
        "options": asdict(options),
        "image_sha256": volume.sha256,
        "simulated": volume.simulated,
        "trained_on": inputs.trained_on,
        "law": inputs.model.which,
        "map": what,
        "slices": len(volume.slices.indices),
        "slices_like_training": int(volume.like_training.sum()),
        "brain_voxels": int(volume.brain.sum()),
        "odd": list(volume.odd),
        "brain_seen": float(inside.sum() / volume.brain.sum()),
    }
    if lesions is not None:
        summary |= {
            "lesion_voxels": int(lesions.sum()),
            "lesion_voxels_seen": int((lesions & inside).sum()),
            "lesion_share": float(lesions[inside].mean()),
        }
    write_json(folder / "summary.json", summary | {"methods": rows})
    short = [{key: _short(value) for key, value in row.items()} for row in rows]
    print(csv_text(short).replace(",", "\t"))
    print(f"maps, tables and figure: {folder}")


def _row(
    name: str, tail: Tail, mapped: np.ndarray, inside: np.ndarray, lesions: np.ndarray | None
) -> dict[str, Any]:
    """A method's line of the table: its map (X,Y,Z) inside the brain, and how it finds lesions."""
    score = mapped[inside]
    row: dict[str, Any] = {
        "method": name,
        "tail": tail,
        "mean": float(score.mean()),
        "p99": float(np.quantile(score, 0.99)),
    }
    if lesions is not None:
        from pipeline.analysis.anomaly.detection import (
            detect,  # torchmetrics takes seconds to import
        )

        row |= asdict(detect(score, lesions[inside]))
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def _slice_rows(
    volume: PreparedVolume, maps: SliceMaps, lesions: np.ndarray | None
) -> list[dict[str, Any]]:
    rows = []
    count = None if lesions is None else volume.in_pixel_axes(lesions).sum(axis=(1, 2))
    for k, index in enumerate(volume.slices.indices):
        middle = [(n - 1) / 2 for n in volume.slices.images.shape[2:]]
        place = volume.slices.affine @ [*middle, index, 1]
        rows.append(
            {
                "slice": index,
                **{f"{axis}_mm": round(float(v), 3) for axis, v in zip("xyz", place, strict=False)},
                "like_training": bool(volume.like_training[k]),
                "mean_residual": float(maps.residual[k].abs().mean()),
                "whitened_variance": float(maps.whitened[k].square().mean()),
                **({} if count is None else {"lesion_voxels": int(count[index])}),
            }
        )
    return rows


def _figure(
    volume: PreparedVolume,
    shown: dict[str, np.ndarray],
    inside: np.ndarray,
    lesions: np.ndarray | None,
    options: Options,
) -> Any:
    view = volume.in_pixel_axes
    chief = view(next(iter(shown.values())))
    weight = (chief if lesions is None else view(lesions)).sum(axis=(1, 2)).astype(float)
    chosen = slices_to_show(weight) or slices_to_show(view(inside).sum(axis=(1, 2)))
    height, width = (float(np.linalg.norm(volume.affine[:3, axis])) for axis in _axes(volume))
    return overlay(
        view(volume.data),
        {name: (view(mapped), UNITS[name]) for name, mapped in shown.items()},
        chosen,
        [f"{volume.plane} slice {index}" for index in chosen],
        brain=view(inside),
        lesions=None if lesions is None else view(lesions),
        aspect=height / width,
        title=f"Anomaly maps of {Path(options.image).name}, tail: {options.tail}"
        + (" (simulated person)" if volume.simulated else ""),
    )


def _axes(volume: PreparedVolume) -> Sequence[int]:
    """The canonical axes of rows and of columns."""
    return [int(np.argmax(np.abs(volume.slices.affine[:3, k]))) for k in (0, 1)]


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
