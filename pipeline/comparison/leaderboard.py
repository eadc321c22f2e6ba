"""From the runs' scores to a table with a row per term: csv and Markdown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pipeline.files import csv_text
from pipeline.losses.registry import TERMS
from pipeline.metrics.catalogue import DENSITY, RECONSTRUCTION, SAMPLES, Metric, loss

Scores = dict[str, float | None]

LPIPS = {"lpips_alex", "lpips_vgg"}
VGG16 = {"kid_vgg16", "fd_vgg16", "sample_kid_vgg16", "sample_fd_vgg16"}
# Metrics that favour a term, as it was trained on the same, and why.
FAVOURED: dict[str, tuple[set[str], str]] = {
    "gaussian": ({"psnr"}, "PSNR is the mean squared error that it minimises"),
    "ssim": ({"ssim"}, "it is trained on SSIM"),
    "ms_ssim": ({"ssim"}, "it is trained on SSIM at several scales"),
    "vgg": (
        LPIPS | VGG16,
        "LPIPS vgg, KID and FD use the very features that it is trained on; those of LPIPS alex "
        "are of the same kind",
    ),
    "watson_dft": (LPIPS, "its parameters were fitted to the human judgements that LPIPS uses"),
}


@dataclass(frozen=True)
class Result:
    """A run's outcome. `scores`: means over subjects; `settled`: whether the rate was held."""

    row: str
    rate_target: float
    seed: int
    scores: Scores
    beta: float
    settled: bool

    @property
    def term(self) -> str:
        return self.row.partition(":")[0]


@dataclass(frozen=True)
class Row:
    """A term at one rate: its runs, one per seed."""

    results: tuple[Result, ...]

    @property
    def name(self) -> str:
        return self.results[0].row

    @property
    def term(self) -> str:
        return self.results[0].term

    @property
    def settled(self) -> bool:
        """Whether the rate of every run was held."""
        return all(result.settled for result in self.results)

    def values(self, key: str) -> list[float]:
        """The runs' scores, or nothing where one of them has none."""
        found = [result.scores.get(key) for result in self.results]
        return [v for v in found if v is not None] if None not in found else []

    def mean(self, key: str) -> float:
        """Mean over seeds, NaN where there is none."""
        values = self.values(key)
        return fmean(values) if values else math.nan

    def spread(self, key: str) -> float:
        """Standard deviation between seeds, NaN with fewer than two."""
        values = self.values(key)
        return stdev(values) if len(values) > 1 else math.nan

    @property
    def beta(self) -> float:
        """Geometric mean over seeds of the weight β of the rate at the end."""
        return math.exp(fmean(math.log(result.beta) for result in self.results))

    def favoured(self, metric: Metric) -> bool:
        return metric.key in FAVOURED.get(self.term, (set(), ""))[0]

    def loss(self, metric: Metric) -> float:
        """The smaller, the better."""
        return loss(metric, self.mean(metric.key), self.mean("blur_effect_data"))


def rows_of(results: Sequence[Result]) -> list[Row]:
    """A row for every term and rate, in the order in which they come first."""
    groups: dict[tuple[float, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.rate_target, result.row), []).append(result)
    return [Row(tuple(sorted(group, key=lambda r: r.seed))) for group in groups.values()]


def best(rows: Sequence[Row], metric: Metric) -> Row | None:
    """The best of the rows with all seeds and a rate that settled; None without any."""
    seeds = _seeds(rows)
    able = [
        row
        for row in rows
        if row.settled and len(row.results) == seeds and not math.isnan(row.loss(metric))
    ]
    return min(able, key=lambda row: row.loss(metric)) if able and metric.better else None


def _seeds(rows: Sequence[Row]) -> int:
    return max((len(row.results) for row in rows), default=0)


@dataclass(frozen=True)
class Cell:
    """A score of a row: mean ± deviation as text, the mean (NaN where there is none), and marks.

    first: best of the column; fair: best of the terms that the metric does not favour, where that
    is another one; favoured: whether the metric favours the term.
    """

    text: str
    value: float
    first: bool
    fair: bool
    favoured: bool


@dataclass(frozen=True)
class Line:
    """A row of a table: the term with its marks, and a cell for each metric."""

    name: str
    cells: tuple[Cell, ...]
    beta: float


@dataclass(frozen=True)
class Table:
    """A row per term, a column for each metric that a run has; data: what real images have.

    with_beta: whether the weight of the rate is shown, too.
    """

    title: str
    metrics: tuple[Metric, ...]
    lines: tuple[Line, ...]
    data: tuple[str, ...]
    with_beta: bool


def tabulated(rows: Sequence[Row], metrics: Sequence[Metric], title: str = "") -> Table | None:
    """Mean ± standard deviation between seeds, a line per row; None where no run has a score."""
    shown = tuple(metric for metric in metrics if any(row.values(metric.key) for row in rows))
    if not shown:
        return None
    seeds = _seeds(rows)
    winners = [
        (best(rows, m), best([row for row in rows if not row.favoured(m)], m)) for m in shown
    ]
    lines = []
    for row in rows:
        count = len(row.results)
        short = "" if count == seeds else f" ({count} of {seeds} seeds)"
        cells = (
            Cell(
                _cell(row, metric), row.mean(metric.key), row is first,
                row is fair and row is not first, row.favoured(metric),
            )
            for metric, (first, fair) in zip(shown, winners, strict=True)
        )  # fmt: skip
        name = row.name + ("" if row.settled else " †") + short
        lines.append(Line(name, tuple(cells), row.beta))
    data = rows[0].mean("blur_effect_data")
    described = metrics is RECONSTRUCTION
    known = described and not math.isnan(data)
    own = tuple(f"{data:.3f}" if metric.key == "blur_effect" else "" for metric in shown)
    return Table(title, shown, tuple(lines), own if known else (), described)


def table(rows: Sequence[Row], metrics: Sequence[Metric], title: str = "") -> str:
    """`tabulated` in Markdown; best in bold, best of the unfavoured in italics."""
    found = tabulated(rows, metrics, title)
    if found is None:
        return ""
    heads = ["term", *(m.heading for m in found.metrics), *(["β"] if found.with_beta else [])]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for line in found.lines:
        cells = [line.name]
        for cell in line.cells:
            mark = "**" if cell.first else "*" if cell.fair else ""
            cells.append(f"{mark}{cell.text}{mark}" + (" ‡" if cell.favoured else ""))
        if found.with_beta:
            cells.append(f"{line.beta:.3g}")
        lines.append(f"| {' | '.join(cells)} |")
    if found.data:
        lines.append(f"| data | {' | '.join(found.data)} | |")
    return (f"### {title}\n\n" if title else "") + "\n".join(lines) + "\n"


def _cell(row: Row, metric: Metric) -> str:
    mean, spread = row.mean(metric.key), row.spread(metric.key)
    if math.isnan(mean):
        return "–"
    text = f"{mean:.{metric.decimals}f}"
    return text if math.isnan(spread) else f"{text} ± {spread:.{metric.decimals}f}"


def markdown(
    results: Sequence[Result],
    title: str,
    conditions: Sequence[tuple[str, str]],
    missing: Sequence[tuple[str, str]],
) -> str:
    """The leaderboard as a page. missing: rows or runs that are not in it, each with the reason."""
    parts = [f"# {title}\n", "\n".join(f"- {key}: {value}" for key, value in conditions) + "\n"]
    rows = rows_of(results)
    for heading, group in at_rates(rows):
        parts.append(f"## {heading}\n")
        parts += [table(*arguments) for arguments in tables_of(group)]
    parts.append("\n".join(notes(rows, missing)) + "\n")
    return "\n".join(part for part in parts if part)


def at_rates(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The rows of each rate, the best first, under the rate in words."""
    found = []
    for target in dict.fromkeys(row.results[0].rate_target for row in rows):
        group = [row for row in rows if row.results[0].rate_target == target]
        found.append((at_rate(target), sorted(group, key=_order)))
    return found


def tables_of(rows: Sequence[Row]) -> list[tuple[list[Row], Sequence[Metric], str]]:
    """What `tabulated` is given for rows of one rate."""
    densities = [row for row in rows if TERMS[row.term].density]
    found: list[tuple[list[Row], Sequence[Metric], str]] = [
        (list(rows), RECONSTRUCTION, "Reconstructions"),
        (densities, DENSITY, "Bound on the likelihood, of densities only"),
        (list(rows), SAMPLES, "Samples from the prior"),
    ]
    return [arguments for arguments in found if arguments[0]]


def at_rate(target: float) -> str:
    """What was held, in words: a rate in nats, or β for 0."""
    return f"{target:g} nats" if target else "fixed β"


def _order(row: Row) -> tuple[bool, float]:
    """By LPIPS, then those without it by PSNR; what has neither comes last."""
    lpips, psnr = row.mean("lpips_alex"), row.mean("psnr")
    if not math.isnan(lpips):
        return False, lpips
    return True, math.inf if math.isnan(psnr) else -psnr


def notes(rows: Sequence[Row], missing: Sequence[tuple[str, str]]) -> list[str]:
    """What a reader must know of the tables; marks as in Markdown."""
    spread = "mean ± standard deviation between seeds" if _seeds(rows) > 1 else "one seed"
    found = [
        f"Each cell: mean over subjects of the mean over their slices; {spread}. **Bold**: best of "
        "the column, among the rows with all seeds whose rate was held. β: weight of the rate at "
        "the end."
    ]
    terms = {row.term for row in rows}
    favoured = [f"{term}: {why}" for term, (_, why) in FAVOURED.items() if term in terms]
    if favoured:
        reasons = "; ".join(favoured)
        found.append(
            f"\n‡ the metric favours the term ({reasons}). *Italic*: best of the terms that the "
            "metric does not favour."
        )
    unsettled = [row for row in rows if not row.settled]
    if unsettled:
        held = "; ".join(
            f"{r.row}, {at_rate(r.rate_target)}, seed {r.seed}"
            for row in unsettled
            for r in row.results
            if not r.settled
        )
        found.append(
            "\n† the rate of training was not within 3% of the target over the last tenth of the "
            f"epochs ({held}): not compared, so never marked as best."
        )
    for what, reason in missing:
        found.append(f"\nNot in the table: {what}: {reason}")
    return found


def summary_csv(results: Sequence[Result]) -> str:
    """A line per term and rate: mean and standard deviation between seeds of every metric."""
    keys = sorted({key for result in results for key in result.scores})
    lines = []
    for row in rows_of(results):
        line: dict[str, object] = {
            "term": row.name,
            "rate_target": row.results[0].rate_target,
            "seeds": len(row.results),
            "rate_settled": row.settled,
            "beta": row.beta,
        }
        for key in keys:
            line[key], line[f"{key}_sd"] = _number(row.mean(key)), _number(row.spread(key))
        lines.append(line)
    return csv_text(lines)


def runs_csv(results: Sequence[Result]) -> str:
    """A line per run."""
    keys = sorted({key for result in results for key in result.scores})
    return csv_text(
        [
            {
                "term": r.row,
                "rate_target": r.rate_target,
                "seed": r.seed,
                "rate_settled": r.settled,
                "beta": r.beta,
                **{key: _number(r.scores.get(key)) for key in keys},
            }
            for r in results
        ]
    )


def _number(value: float | None) -> float | str:
    return "" if value is None or math.isnan(value) else value
