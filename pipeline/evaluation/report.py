"""The files of an evaluation: tables, figures, and the page that shows all (report.html)."""

import io
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from data_prep.common.pages import data_uri, page_templates
from data_prep.common.tracking import flat_keys
from data_prep.common.wording import program, quantity
from pipeline.config import Config
from pipeline.data.slices import Store
from pipeline.evaluation.pairs import Pair
from pipeline.evaluation.record import REPORT
from pipeline.evaluation.scores import groups_of, headline_of, notes_of
from pipeline.figures import image_grid, write_figure
from pipeline.files import csv_text, run_folder, swapped_in, write_json, write_text
from pipeline.metrics.statistics import Interval

# Images of fewer pixels are shown enlarged, each pixel as a square: smoothing would hide blur.
SMALL_SIDE = 160


@dataclass(frozen=True)
class Evaluation:
    """Scores, and what a report shows of them.

    metrics: aggregated; rows: a row per subject; figures: by file name; absent: metrics that are
    left out, each with the reason; pairs: middle slices of subjects, evenly spread; best and worst:
    slices; samples and data: images (n,C,H,W), as many drawn from the prior as of the data; drawn:
    where the samples' latents come from; calibration: curves, to draw runs side by side later.
    """

    metrics: dict[str, Interval]
    rows: Sequence[Mapping[str, Any]]
    figures: Mapping[str, Figure]
    absent: Mapping[str, str]
    pairs: Sequence[Pair]
    best: Sequence[Pair]
    worst: Sequence[Pair]
    samples: Tensor | None = None
    data: Tensor | None = None
    drawn: str = ""
    calibration: dict[str, Any] | None = None


@dataclass(frozen=True)
class About:
    """Title and origin of a report.

    kind: what the page is, after the title; what: was scored; of: on what, after the number of
    subjects; seen: what must be said where the subjects are not unseen ones; settings: the
    configuration as YAML.
    """

    title: str
    kind: str
    what: str
    of: str = ""
    simulated: bool = False
    image_set: bool = False
    seen: str = ""
    commands: Sequence[str] = ()
    settings: str = ""


def about_run(
    config: Config, trained: Config, run: str, store: Store, epoch: int, seen: str = ""
) -> About:
    """Of a scored run.

    Args:
        config: what it was scored with.
        trained: the configuration that the run keeps.
        run: its name.
        store: what it was scored on.
        epoch: of the checkpoint.
        seen: as of `About`.
    """
    likelihood = config.likelihood
    form = f" ({likelihood.form})" if likelihood.term == "blur" else ""
    old, new = (dict(flat_keys(asdict(c))) for c in (trained, config))
    changed = {key: value for key, value in new.items() if value != old.get(key)}
    again = f"{run}-again"
    return About(
        title=run,
        kind="scores of a trained run",
        what=f"Trained under the {likelihood.term} term{form}, {config.evaluation.checkpoint} "
        f"checkpoint (epoch {epoch})",
        of=f" of store {store.name}, split {config.evaluation.split}",
        simulated=store.simulated,
        image_set=store.image_set,
        seen=seen,
        commands=[
            shell_line("train", {"config": str(run_folder(run) / "config.yaml"), "run": again}),
            shell_line("evaluate", {"run": again, **changed}),
        ],
        settings=yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True),
    )


def shell_line(name: str, options: Mapping[str, Any]) -> str:
    """A command for a shell, with WORK where that is set."""
    work = os.environ.get("WORK")
    words = [f"WORK={shlex.quote(work)}"] if work else []
    words += [program("pipeline"), name]
    for key, value in options.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words.append(f"--{key} {shlex.quote(text)}")
    return " ".join(words)


def write_evaluation(
    folder: Path, evaluation: Evaluation, inputs: dict[str, Any], about: About
) -> None:
    """Write figures, tables and the report: all of them, or the folder stays as it was."""
    with swapped_in(folder) as new:
        for name, figure in evaluation.figures.items():
            write_figure(new / "figures" / name, figure)
        write_text(new / "per_subject.csv", csv_text(evaluation.rows))
        if evaluation.calibration is not None:
            write_json(new / "calibration.json", evaluation.calibration)
        write_text(new / REPORT, report(new, evaluation, about))
        write_json(new / "inputs.json", inputs, sort_keys=True)
        write_json(new / "metrics.json", evaluation.metrics)


def report(folder: Path, evaluation: Evaluation, about: About) -> str:
    """The page; its figures lie in folder/figures."""
    metrics, rows = evaluation.metrics, evaluation.rows
    place, noun = ("image", "block") if about.image_set else ("slice", "subject")
    slices = quantity(sum(row["slices"] for row in rows), place)
    people = "" if about.seen else "unseen "
    people += "simulated people" if about.simulated else "subjects"
    figures = {
        name.removesuffix(".png"): data_uri((folder / "figures" / name).read_bytes())
        for name in evaluation.figures
    }
    parts = [("reconstructions", "Reconstructions"), ("extremes", "Best and worst")]
    if evaluation.samples is not None:
        parts.append(("samples", "Samples"))
    parts += [(n, n.capitalize()) for n in ("kernels", "spectra", "calibration") if n in figures]
    groups = groups_of(metrics)
    reasons: dict[str, list[str]] = {}
    for key, reason in evaluation.absent.items():
        reasons.setdefault(reason, []).append(key)
    try:
        own = version("sharp-vae-mri")
    except PackageNotFoundError:
        own = "not installed"
    return page_templates("pipeline.evaluation").get_template(REPORT).render(
        about=about,
        place=place,
        lead=f"{about.what}, scored on {slices} of {quantity(len(rows), noun)}{about.of}.",
        beside=people.replace("subjects", "images") if about.image_set else f"slices of {people}",
        parts=[*parts, ("scores", "All scores"), ("repeat", "To repeat it")],
        notes=notes_of(metrics),
        headline=headline_of(metrics),
        groups=groups,
        floors=any(one.floor for _, scores in groups for one in scores),
        more=len(metrics) - sum(len(scores) for _, scores in groups),
        reasons=reasons,
        small=max(evaluation.pairs[0].image.shape[-2:]) < SMALL_SIDE,
        shown={
            kind: [_shown(pair, place) for pair in pairs]
            for kind, pairs in (("middle", evaluation.pairs), ("best", evaluation.best),
                                ("worst", evaluation.worst))
        },
        count=0 if evaluation.samples is None else len(evaluation.samples),
        samples=picture(evaluation.samples, columns=6),
        data=picture(evaluation.data, columns=6),
        drawn=evaluation.drawn,
        figures=figures,
        versions=f"sharp-vae-mri {own}, torch {torch.__version__}",
    )  # fmt: skip


def _shown(pair: Pair, place: str) -> dict[str, Any]:
    """A pair for the template: names, size in pixels, and both images as addresses."""
    height, width = pair.image.shape[-2:]
    where = "" if pair.place is None else f"{place} {pair.place}, "
    return {
        "subject": pair.subject,
        "name": f"{pair.subject}, {where}".removesuffix(", "),
        "caption": f"{where}{pair.psnr:.2f} dB",
        "width": width,
        "height": height,
        "original": picture(pair.image[None]),
        "made": picture(pair.reconstruction[None]),
    }


def picture(images: Tensor | None, columns: int = 1) -> str:
    """Images (n,C,H,W) in [0,1] side by side, as the address of a PNG; grey ones in one channel."""
    if images is None:
        return ""
    grey = images.shape[1] == 1
    # Brains lie in a black surround, which separates them; photographs need a gap.
    grid = image_grid(images, columns, gap=0 if grey else 2)
    stream = io.BytesIO()
    Image.fromarray(grid[..., 0] if grey else grid).save(stream, "PNG", optimize=True)
    return data_uri(stream.getvalue())
