"""Scores as text: for the report, as a table for a terminal, and for MLflow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.metrics.catalogue import CALIBRATION, GROUPS, HEADLINE, Metric
from pipeline.metrics.statistics import FEW_FAMILIES, Interval, few, few_calibrated
from pipeline.tracking.runs import score_name
from pipeline.tracking.runs import table as markdown

Metrics = Mapping[str, Interval]


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
    return [_score(metric, metrics) for metric in group if metric.key in metrics]


def groups_of(metrics: Metrics) -> list[tuple[str, list[Score]]]:
    """Names of groups and their scores; groups without any are left out."""
    groups = [(name, scores_of(metrics, group)) for name, group in GROUPS.items()]
    return [(name, scores) for name, scores in groups if scores]


def _score(metric: Metric, metrics: Metrics) -> Score:
    mean, low, high = (metrics[metric.key][part] for part in ("mean", "low", "high"))
    interval = "" if low is None else f"[{metric.shown(low)}, {metric.shown(high)}]"
    data = "" if metric.data is None else f"{metric.data}".removesuffix(".0")
    if isinstance(metric.data, str):  # another metric's value
        data = metric.shown(metrics[metric.data]["mean"]) if metric.data in metrics else ""
    floor = metrics.get(f"floor_{metric.key}")
    lowest = "" if floor is None else metric.shown(floor["mean"])
    return Score(metric, metric.shown(mean), interval, data, lowest)


def headline_of(metrics: Metrics) -> list[Score]:
    """The scores of a report's tiles: none of calibration where nothing was learned."""
    left_out = CALIBRATION if below_floor(metrics) else ()
    return scores_of(metrics, [metric for metric in HEADLINE if metric not in left_out])


def notes_of(metrics: Metrics) -> list[str]:
    """Notes beside the scores: a run that learned nothing, few families."""
    means = {key: found["mean"] for key, found in metrics.items()}
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
    """The scores that people read, aligned: name, arrow, mean, interval, the data's own, floor.

    Metrics without a place in the catalogue are counted in a line of their own; notes follow.
    """
    groups = groups_of(metrics)
    floor = "floor" * any(s.floor for _, scores in groups for s in scores)
    rows = [("", "better", "mean", "95% interval", "data", floor)]
    for name, scores in groups:
        rows.append((name, "", "", "", "", ""))
        rows += [
            (f"  {s.metric.label}", s.metric.arrow, s.mean, s.interval, s.data, s.floor)
            for s in scores
        ]
    shown = [row for row in rows if any(row[1:])]  # a group's name may be longer than its column
    widths = [max(len(row[column]) for row in shown) for column in range(6)]
    a, b, c, d, e, f = widths
    lines = [
        f"{name:<{a}}  {arrow:<{b}}  {mean:>{c}}  {interval:>{d}}  {data:>{e}}  {low:>{f}}".rstrip()
        for name, arrow, mean, interval, data, low in rows
    ]
    if more := len(metrics) - sum(len(scores) for _, scores in groups):
        lines.append(f"and {more} more in metrics.json")
    lines += [f"note: {text}" for text in notes_of(metrics)]
    return "\n".join(lines)


Means = Mapping[str, float | None]


def headline_names(means: Means, folder: str) -> dict[str, float]:
    """Headline means by their names on the training run in MLflow.

    folder: the evaluation's. Scores of others than the run's own test subjects have it as their
    group: they must not pass for test scores, nor for the validation of the epochs.
    """
    names = {}
    for key in (metric.key for metric in HEADLINE):
        if (mean := means.get(key)) is not None:
            name = score_name(key, "test")
            own = folder == "evaluation"
            names[name if own else f"{folder}/{name.removeprefix('test/')}"] = mean
    return names


def columns(metrics: Metrics, split: str) -> dict[str, list[object]]:
    """Every metric with its interval, as columns of MLflow's table; the headline comes first."""
    first = [metric.key for metric in HEADLINE if metric.key in metrics]
    keys = [*first, *sorted(metrics.keys() - set(first))]
    return {
        "metric": [score_name(key, split) for key in keys],
        **{part: [metrics[key][part] for key in keys] for part in ("mean", "low", "high")},
        "key": [*keys],
    }


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
