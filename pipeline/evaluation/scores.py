"""Scores as text: for the report, as a table for a terminal, and for MLflow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.metrics.catalogue import GROUPS, HEADLINE, Metric
from pipeline.metrics.statistics import Interval, few, few_calibrated
from pipeline.tracking.names import score_name
from pipeline.tracking.notes import table as markdown

Metrics = Mapping[str, Interval]


@dataclass(frozen=True)
class Score:
    """A metric and its value as text; interval and data are empty where there is none."""

    metric: Metric
    mean: str
    interval: str
    data: str


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
    return Score(metric, metric.shown(mean), interval, data)


def warning_of(metrics: Metrics) -> str:
    """What must be said of intervals over few families and of a law that few calibrated, or ""."""
    said = []
    if count := metrics.get("families", {}).get("mean"):
        said.append(few(int(count)))
    if (count := metrics.get("calibration_families", {}).get("mean")) is not None:
        said.append(few_calibrated(int(count)))
    return "; ".join(filter(None, said))


def table(metrics: Metrics) -> str:
    """The scores that people read, aligned: name and unit, arrow, mean, interval, the data's own.

    Metrics without a place in the catalogue are counted in the last line.
    """
    rows = [("", "better", "mean", "95% interval", "data")]
    for name, scores in groups_of(metrics):
        rows.append((name, "", "", "", ""))
        rows += [
            (f"  {s.metric.label}", s.metric.arrow, s.mean, s.interval, s.data) for s in scores
        ]
    shown = [row for row in rows if any(row[1:])]  # a group's name may be longer than its column
    widths = [max(len(row[column]) for row in shown) for column in range(5)]
    a, b, c, d, e = widths
    lines = [
        f"{name:<{a}}  {arrow:<{b}}  {mean:>{c}}  {interval:>{d}}  {data:>{e}}".rstrip()
        for name, arrow, mean, interval, data in rows
    ]
    if more := len(metrics) - sum(len(scores) for _, scores in groups_of(metrics)):
        lines.append(f"and {more} more in metrics.json")
    if warning := warning_of(metrics):
        lines.append(f"note: {warning}")
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
    if warning := warning_of(metrics):
        parts.append(f"{warning.capitalize()}.")
    if absent:
        parts.append(f"Not scored: {', '.join(sorted(absent))}; `absent.json` says why.")
    return "\n\n".join(parts)
