"""Scores as text: one by one for the report, all of them as a table for a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.metrics.catalogue import GROUPS, Metric
from pipeline.metrics.statistics import Interval, few


@dataclass(frozen=True)
class Score:
    """A metric and its value as text; interval and data are empty where there is none."""

    metric: Metric
    mean: str
    interval: str
    data: str


def scores_of(metrics: Mapping[str, Interval], group: Sequence[Metric]) -> list[Score]:
    """The scores of a group that a run has, in the group's order."""
    return [_score(metric, metrics) for metric in group if metric.key in metrics]


def groups_of(metrics: Mapping[str, Interval]) -> list[tuple[str, list[Score]]]:
    """Names of groups and their scores; groups without any are left out."""
    found = [(name, scores_of(metrics, group)) for name, group in GROUPS.items()]
    return [(name, scores) for name, scores in found if scores]


def table(metrics: Mapping[str, Interval]) -> str:
    """The scores that people read, aligned: name and unit, arrow, mean, interval, the data's own.

    Metrics without a place in the catalogue are counted in the last line.
    """
    groups = groups_of(metrics)
    rows = [
        (f"  {one.metric.label}", one.metric.arrow, one.mean, one.interval, one.data)
        for _, scores in groups
        for one in scores
    ]
    heads = ("", "better", "mean", "95% interval", "data")
    widths = [max(len(row[place]) for row in (heads, *rows)) for place in range(len(heads))]
    lines = [_line(heads, widths)]
    remaining = iter(rows)
    for name, scores in groups:
        lines.append(name)
        lines += [_line(next(remaining), widths) for _ in scores]
    if more := len(metrics) - len(rows):
        lines.append(f"and {more} more in metrics.json")
    if warning := warning_of(metrics):
        lines.append(f"note: {warning}")
    return "\n".join(lines)


def warning_of(metrics: Mapping[str, Interval]) -> str:
    """What must be said of the intervals of few families; empty where there is nothing to say."""
    count = metrics.get("families", {}).get("mean")
    return few(int(count)) if count else ""


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Words to the left of their columns, numbers to the right."""
    words, numbers = cells[:2], cells[2:]
    parts = [word.ljust(width) for word, width in zip(words, widths[:2], strict=True)]
    parts += [number.rjust(width) for number, width in zip(numbers, widths[2:], strict=True)]
    return "  ".join(parts).rstrip()


def _score(metric: Metric, metrics: Mapping[str, Interval]) -> Score:
    found = metrics[metric.key]
    low, high = found["low"], found["high"]
    interval = "" if low is None else f"[{metric.shown(low)}, {metric.shown(high)}]"
    return Score(metric, metric.shown(found["mean"]), interval, _data(metric, metrics))


def _data(metric: Metric, metrics: Mapping[str, Interval]) -> str:
    """What the originals have: another metric's value, a number that is exact, or nothing."""
    if metric.data is None:
        return ""
    if isinstance(metric.data, str):
        return metric.shown(metrics[metric.data]["mean"]) if metric.data in metrics else ""
    return f"{metric.data:g}"
