"""An evaluation's files: tables, figures, the page that shows all; and its scores as text."""

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
from data_prep.common.tracking import Tracker, flat_keys
from data_prep.common.wording import program, quantity
from pipeline.config import Config
from pipeline.data.slices import FILES_CHECKED, Store, evenly_spread
from pipeline.evaluation.figures import SHOWN_SUBJECTS
from pipeline.evaluation.run import REPORT
from pipeline.evaluation.scoring import Pair, Tally
from pipeline.figures import image_grid, write_figure
from pipeline.files import csv_text, run_folder, swapped_in, write_json, write_text
from pipeline.metrics.catalogue import GROUPS, HEADLINE, Metric
from pipeline.metrics.statistics import FEW_FAMILIES, Interval, few, few_calibrated
from pipeline.tracking.runs import score_name
from pipeline.tracking.runs import table as markdown
from pipeline.training.description import SIMULATED

Metrics = Mapping[str, Interval]

# Images of fewer pixels are shown enlarged, each pixel as a square: smoothing would hide blur.
SMALL_SIDE = 160
LOOK = """\
- *Artifacts*, `figures`: reconstructions with error maps, samples, kernels, spectra, calibration
- `scores.json`: every metric with its 95% interval; `per_subject.csv`: every subject's"""


@dataclass(frozen=True)
class Evaluation:
    """Scores, and what a report shows of them.

    metrics: aggregated; tally: the table of subjects; figures: by file name; absent: metrics that
    are left out, each with the reason; samples and data: images (n,C,H,W), as many drawn from the
    prior as of the data; drawn: the latents of samples, in words; calibration: curves, to draw runs
    side by side later.
    """

    metrics: dict[str, Interval]
    tally: Tally
    figures: Mapping[str, Figure]
    absent: Mapping[str, str]
    samples: Tensor | None = None
    data: Tensor | None = None
    drawn: str = ""
    calibration: dict[str, Any] | None = None


@dataclass(frozen=True)
class About:
    """Title and origin of a report.

    kind: of page, after the title; what: was scored; of: on what, after the number of subjects;
    seen: the note where the subjects are not unseen ones; settings: the configuration as YAML.
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
    folder: Path, evaluation: Evaluation, inputs: Mapping[str, Any], about: About
) -> None:
    """Write all files of an evaluation, in place of an older one's; all or none are there."""
    with swapped_in(folder) as new:
        for name, figure in evaluation.figures.items():
            write_figure(new / "figures" / name, figure)
        write_text(new / "per_subject.csv", csv_text(evaluation.tally.rows))
        if evaluation.calibration is not None:
            write_json(new / "calibration.json", evaluation.calibration)
        write_text(new / REPORT, page(new, evaluation, about))
        write_json(new / "inputs.json", inputs, sort_keys=True)
        write_json(new / "metrics.json", evaluation.metrics)


def page(folder: Path, evaluation: Evaluation, about: About) -> str:
    """The page; its figures lie in folder/figures."""
    metrics, tally = evaluation.metrics, evaluation.tally
    place, noun = ("image", "block") if about.image_set else ("slice", "subject")
    slices = quantity(sum(row["slices"] for row in tally.rows), place)
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
    middle = [tally.shown[n] for n in evenly_spread(len(tally.shown), SHOWN_SUBJECTS)]
    pairs = {"middle": middle, "best": tally.best, "worst": tally.worst}
    template = page_templates("pipeline.evaluation").get_template(REPORT)
    return template.render(
        about=about,
        place=place,
        lead=f"{about.what}, scored on {slices} of {quantity(len(tally.rows), noun)}{about.of}.",
        beside=people.replace("subjects", "images") if about.image_set else f"slices of {people}",
        parts=[*parts, ("scores", "All scores"), ("repeat", "To repeat it")],
        notes=notes_of(metrics),
        headline=headline_of(metrics),
        groups=groups,
        floors=any(score.floor for _, scores in groups for score in scores),
        more=len(metrics) - sum(len(scores) for _, scores in groups),
        reasons=reasons,
        small=max(tally.shown[0].image.shape[-2:]) < SMALL_SIDE,
        shown={kind: [_shown(pair, place) for pair in some] for kind, some in pairs.items()},
        count=0 if evaluation.samples is None else len(evaluation.samples),
        samples=picture(evaluation.samples, columns=6),
        data=picture(evaluation.data, columns=6),
        drawn=evaluation.drawn,
        figures=figures,
        versions=f"sharp-vae-mri {own}, torch {torch.__version__}",
    )


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


@dataclass(frozen=True)
class Score:
    """A metric and its value as text; interval, data and floor are empty where there is none.

    floor: the score of the mean slice in place of every reconstruction.
    """

    metric: Metric
    mean: str
    interval: str
    data: str
    floor: str


def scores_of(metrics: Metrics, group: Sequence[Metric]) -> list[Score]:
    """The scores of a group that a run has, in the group's order."""
    means = {key: value["mean"] for key, value in metrics.items()}
    scores = []
    for metric in (metric for metric in group if metric.key in metrics):
        low, high = (metrics[metric.key][end] for end in ("low", "high"))
        floor = f"floor_{metric.key}"
        interval = "" if low is None else f"[{metric.shown(low)}, {metric.shown(high)}]"
        lowest = metric.shown(means[floor]) if floor in means else ""
        mean = metric.shown(means[metric.key])
        scores.append(Score(metric, mean, interval, metric.of_data(means), lowest))
    return scores


def groups_of(metrics: Metrics) -> list[tuple[str, list[Score]]]:
    """Names of groups and their scores; groups without any are left out."""
    groups = [(name, scores_of(metrics, group)) for name, group in GROUPS.items()]
    return [(name, scores) for name, scores in groups if scores]


def headline_of(metrics: Metrics) -> list[Score]:
    """The scores of a report's tiles: none of calibration where nothing was learned."""
    learned = not below_floor(metrics)
    shown = [m for m in HEADLINE if learned or not m.key.startswith("calibration_")]
    return scores_of(metrics, shown)


def notes_of(metrics: Metrics) -> list[str]:
    """Notes beside the scores: a run that learned nothing, few families."""
    means = {key: value["mean"] for key, value in metrics.items()}
    notes = []
    if below_floor(metrics):
        notes.append(
            f"reconstructions ({means['psnr']:.1f} dB) are no better than the mean slice "
            f"({means['floor_psnr']:.1f} dB): nothing was learned"
        )
    if count := means.get("families"):
        notes.append(few(int(count)))
    if (count := means.get("calibration_families")) is not None:
        notes.append(few_calibrated(int(count)))
    if (count := means.get("sample_families")) and count < FEW_FAMILIES:
        notes.append(
            f"samples were compared with {count:.0f} families: with so few no test can show privacy"
        )
    return [text for text in notes if text]


def below_floor(metrics: Metrics) -> bool:
    """Whether the mean slice would be as good a reconstruction of every slice, by PSNR."""
    score, floor = (metrics.get(key, {}).get("mean") for key in ("psnr", "floor_psnr"))
    return score is not None and floor is not None and score <= floor


def table(metrics: Metrics) -> str:
    """The scores for a terminal, aligned: name, arrow, mean, interval, the data's own, floor.

    Metrics without a place in the catalogue are counted in a line of their own; notes follow.
    """
    groups = groups_of(metrics)
    scores = [score for _, group in groups for score in group]
    rows = [("", "better", "mean", "95% interval", "data", "floor" * any(s.floor for s in scores))]
    for name, group in groups:
        rows.append((name, "", "", "", "", ""))
        for s in group:
            rows.append(
                (f"  {s.metric.label}", s.metric.arrow, s.mean, s.interval, s.data, s.floor)
            )
    aligned = [row for row in rows if any(row[1:])]  # a group's name may be longer than its column
    widths = [max(len(row[column]) for row in aligned) for column in range(6)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[:2] = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        lines.append("  ".join(cells).rstrip())
    if more := len(metrics) - len(scores):
        lines.append(f"and {more} more in metrics.json")
    return "\n".join([*lines, *(f"note: {text}" for text in notes_of(metrics))])


def note(metrics: Metrics, absent: Mapping[str, str]) -> str:
    """Headline scores as a table of Markdown, and what is missing."""
    rows = [
        ["samples: " * s.metric.key.startswith("sample_") + s.metric.heading, s.mean, s.interval]
        for s in scores_of(metrics, HEADLINE)
    ]
    parts = [markdown(["score", "mean", "95% interval"], rows)]
    parts += [f"Note: {text}." for text in notes_of(metrics)]
    if absent:
        parts.append(f"Not scored: {', '.join(sorted(absent))}; `absent.json` says why.")
    return "\n\n".join(parts)


def headline_names(means: Mapping[str, Any], folder: str) -> dict[str, float]:
    """Headline means by their names on the training run in MLflow.

    folder: the evaluation's. Scores of others than the run's own test subjects have it as their
    group: they must not pass for test scores, nor for the validation of the epochs.
    """
    names = {}
    for key in (metric.key for metric in HEADLINE if means.get(metric.key) is not None):
        name = score_name(key, "test")
        own = folder == "evaluation"
        names[name if own else f"{folder}/{name.removeprefix('test/')}"] = means[key]
    return names


def log_evaluation(
    tracker: Tracker,
    evaluation: Evaluation,
    folder: Path,
    store: Store,
    config: Config,
    seen: str,
) -> None:
    """Log an evaluation to its own run, and its headline to the training run that it is of."""
    split, metrics, absent = config.evaluation.split, evaluation.metrics, evaluation.absent
    if config.evaluation.other_people:
        tracker.tags({"other_people": FILES_CHECKED})
    if below_floor(metrics):
        tracker.tags({"learned": "nothing: reconstructions are no better than the mean slice"})
    tracker.dataset(store.name, store.digest, store.path, "evaluation")
    for name in evaluation.figures:
        tracker.file(folder / "figures" / name, "figures")
    for name in ("per_subject.csv", "metrics.json", REPORT):
        tracker.text((folder / name).read_text("utf-8"), name)
    means = {key: v["mean"] for key, v in metrics.items() if v["mean"] is not None}
    tracker.metrics({score_name(key, split): mean for key, mean in means.items()})
    first = [metric.key for metric in HEADLINE if metric.key in metrics]
    keys = [*first, *sorted(metrics.keys() - set(first))]
    parts = {part: [metrics[key][part] for key in keys] for part in ("mean", "low", "high")}
    names = [score_name(key, split) for key in keys]
    tracker.table({"metric": names, **parts, "key": keys}, "scores.json")
    if absent:
        tracker.text(json.dumps(absent, indent=1, sort_keys=True), "absent.json")
    notes = [note(metrics, absent), f"{seen}." * bool(seen), SIMULATED * store.simulated]
    tracker.note("\n\n".join([*filter(None, notes), LOOK]))
    tracker.parent.metrics(headline_names(means, folder.name))
    tracker.parent.tags({f"{folder.name}_run": str(tracker.run_id)})
