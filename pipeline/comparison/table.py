"""Tables and figures of a comparison: means a term, paired differences to a reference term."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.figures import COLOURS, bare, image_grid, legend_below
from pipeline.metrics.catalogue import GROUPS, RECONSTRUCTION, Metric
from pipeline.metrics.statistics import few, paired_differences
from pipeline.tracking.runs import table as markdown

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
UNSEEN = "no difference seen"
MARKERS = "os^"  # changes with each turn of the colours
SHOWN = {m.key: m for m in RECONSTRUCTION if m.headline}
# Scores against the rate that was spent; last the trade of distortion and perception (Blau,
# Michaeli, CVPR 2018).
PANELS = [*(("rate", key) for key in SHOWN if key != "rate"), ("psnr", "lpips_alex")]


def at_rate(target: float) -> str:
    """The rate that was held, in words: in nats, or β for 0."""
    return f"{target:g} nats" if target else "fixed β"


@dataclass(frozen=True)
class Table:
    """Cells as text, a row per term, for Markdown and the page."""

    title: str
    heads: list[str]
    rows: list[list[str]]

    @property
    def markdown(self) -> str:
        return f"### {self.title}\n\n{markdown(self.heads, self.rows)}"


def differences_of(runs: pd.DataFrame, folders: Mapping[str, Path]) -> pd.DataFrame:
    """Paired differences of every term to the reference term of its rate, metric by metric.

    The reference is `gaussian` where it is among the terms, else the first. Both are averaged over
    the seeds that both have.

    Args:
        runs: a row per run: term, rate_target, seed, run, …
        folders: of each run's evaluation.

    Returns:
        Columns rate_target, term, reference, seeds, metric, mean, low, high, families.
    """
    tables = []
    for rate, group in runs.groupby("rate_target", sort=False):
        terms = {term: rows.set_index("seed")["run"] for term, rows in group.groupby("term")}
        names = list(dict.fromkeys(group["term"]))
        reference = "gaussian" if "gaussian" in names else names[0]
        for term in names:
            seeds = terms[term].index.intersection(terms[reference].index)
            if term == reference or seeds.empty:
                continue
            first, second = ([folders[terms[n][s]] for s in seeds] for n in (term, reference))
            labels = {"rate_target": rate, "term": term, "reference": reference}
            labels["seeds"] = len(seeds)
            tables.append(paired_differences(first, second).reset_index().assign(**labels))
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    return table[[*labels, *table.columns.difference([*labels], sort=False)]]


def tables_at(runs: pd.DataFrame, differences: pd.DataFrame) -> list[tuple[str, list[Table]]]:
    """For each rate, in words, the tables of means and, beside each, of differences."""
    pages = []
    for rate, group in runs.groupby("rate_target", sort=False):
        apart = differences[differences["rate_target"] == rate] if len(differences) else differences
        tables: list[Table] = []
        for name, metrics in GROUPS.items():
            shown = [m for m in metrics if m.key in group and group[m.key].notna().any()]
            if shown:
                tables.append(_means(name, shown, group))
            if paired := [m for m in shown if len(apart) and m.key in set(apart["metric"])]:
                tables.append(_differences(name, paired, apart))
        pages.append((at_rate(float(str(rate))), tables))
    return pages


def _means(name: str, metrics: Sequence[Metric], runs: pd.DataFrame) -> Table:
    """Mean ± standard deviation between seeds of the means over families."""
    seeds = runs.groupby("term").size().max()
    rows = []
    for term, group in runs.groupby("term", sort=False):
        label = str(term) + ("" if group["rate_settled"].all() else " †")
        label += "" if len(group) == seeds else f" ({len(group)} of {seeds} seeds)"
        cells = [label]
        for metric in metrics:
            values = group[metric.key]
            cell = metric.shown(values.mean(skipna=False))
            if len(group) > 1 and cell != "–":
                cell += f" ± {values.std():.{metric.decimals}f}"
            cells.append(cell + " ‡" * (metric.key in FAVOURED.get(str(term), (set(),))[0]))
        rows.append([*cells, f"{group['beta'].mean():.3g}"])
    if any(metric.data is not None for metric in metrics):
        means = {str(k): v for k, v in runs.select_dtypes("number").mean().items()}
        rows.append(["data", *(metric.of_data(means) for metric in metrics), ""])
    return Table(name, ["term", *(metric.heading for metric in metrics), "β"], rows)


def _differences(name: str, metrics: Sequence[Metric], differences: pd.DataFrame) -> Table:
    """Cells: mean [low, high], or words where the interval holds zero."""
    rows = []
    for term, group in differences.groupby("term", sort=False):
        values = group.set_index("metric")[["mean", "low", "high"]].to_dict("index")
        cells = [_difference(m, values[m.key]) if m.key in values else "–" for m in metrics]
        rows.append([f"{term} − {group['reference'].iloc[0]}", *cells])
    title = f"{name}: paired differences over {differences['families'].max()} families"
    return Table(title, ["", *(metric.heading for metric in metrics)], rows)


def _difference(metric: Metric, row: Mapping[Hashable, float]) -> str:
    mean, low, high = (f"{row[key]:+.{metric.decimals}f}" for key in ("mean", "low", "high"))
    if pd.isna(row["mean"]):
        return "–"
    if pd.isna(row["low"]):
        return f"{mean} (no interval)"
    return f"{UNSEEN if row['low'] <= 0 <= row['high'] else mean} [{low}, {high}]"


def notes(
    runs: pd.DataFrame, differences: pd.DataFrame, missing: Sequence[tuple[str, str]]
) -> list[str]:
    """Notes that a reader needs. missing: terms or runs left out, with the reasons."""
    several = runs.groupby(["term", "rate_target"]).size().max() > 1
    spread = "mean ± standard deviation between seeds" if several else "one seed"
    lines = [
        f"Means: over families of the means over their subjects' slices; {spread}. Terms are in "
        "the order in which they were asked for, as test scores choose nothing. β: weight of the "
        "rate at the end.",
    ]
    if len(differences):
        lines.append(
            "Differences: of the same families under two terms, seeds averaged first; 95% interval "
            f'(Student\'s t over families). "{UNSEEN}": the interval holds zero. Of twenty such '
            "intervals one misses the truth by chance, and they say nothing about other seeds."
        )
        if warning := few(differences["families"].min()):
            lines.append(f"{warning.capitalize()}.")
    if favours := [f"{t}: {why}" for t, (_, why) in FAVOURED.items() if t in set(runs["term"])]:
        lines.append(f"‡ the metric favours the term ({'; '.join(favours)}).")
    if len(unsettled := runs[~runs["rate_settled"]]):
        held = "; ".join(
            f"{run['term']}, {at_rate(run['rate_target'])}, seed {run['seed']}"
            for run in unsettled.to_dict("records")
        )
        lines.append(
            "† the rate of training was not within 3% of the target over the last tenth of the "
            f"epochs ({held}): differences of such a term are not at one rate."
        )
    return lines + [f"Not in the table: {what}: {reason}" for what, reason in missing]


def draw_scores(runs: pd.DataFrame, title: str) -> Figure:
    """Scores against rate and against each other, a line per term; bars: spread between seeds."""
    panels = [(x, y) for x, y in PANELS if {x, y} <= set(runs.dropna(axis=1))]
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(4.2 * min(len(panels), 3), 0.6 + 4.0 * rows), layout="constrained")
    for place, (x, y) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, min(len(panels), 3), place)
        for index, term in enumerate(dict.fromkeys(runs["term"])):
            line = runs[runs["term"] == term].groupby("rate_target")[[x, y]]
            mean, spread = line.mean().sort_values(x), line.std().fillna(0.0)
            spread, colour = spread.loc[mean.index], COLOURS[index % len(COLOURS)]
            marker = MARKERS[index // len(COLOURS) % len(MARKERS)]
            style: dict[str, Any] = {
                "ms": 6,
                "lw": 1.2,
                "capsize": 2,
                "color": colour,
                "marker": marker,
            }
            axes.errorbar(mean[x], mean[y], xerr=spread[x], yerr=spread[y], label=term, **style)
        axes.set(xlabel=SHOWN[x].heading, ylabel=SHOWN[y].heading)
        axes.grid(alpha=0.25)
    legend_below(figure, axes)
    figure.suptitle(title, fontsize=11)
    return figure


def draw_differences(table: pd.DataFrame, title: str) -> Figure:
    """Paired differences with their intervals, a line per term and rate, a panel per metric."""
    shown = [key for key in SHOWN if key in set(table["metric"])]
    first = table[table["metric"] == shown[0]]
    names = first["term"] + " − " + first["reference"] + ", " + first["rate_target"].map(at_rate)
    size = (1.6 + 2.7 * len(shown), 1.3 + 0.32 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, key in zip(panels, shown, strict=True):
        rows = table[table["metric"] == key]
        ends = np.array([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
        bars = np.nan_to_num(ends)
        axes.errorbar(rows["mean"], range(len(rows)), xerr=bars, fmt="o", color=COLOURS[1])
        axes.axvline(0.0, color="0.25", ls=":", lw=1.5)
        axes.set_xlabel(SHOWN[key].label)
    panels[0].set_yticks(range(len(names)), names, fontsize=9)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(title, fontsize=11)
    return figure


def side_by_side(rows: Mapping[str, Tensor], subjects: Sequence[str], title: str) -> Figure:
    """A row per label, originals or a term's reconstructions: (N,C,H,W) in [0,1], N subjects."""
    count, _, height, width = next(iter(rows.values())).shape
    size = (1.9 + 1.3 * count, 0.9 + 1.3 * height / width * len(rows))
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row, (label, images) in enumerate(rows.items()):
        for column in range(count):
            panel = axes[row, column]
            panel.imshow(image_grid(images[column : column + 1]), interpolation="nearest")
            bare(panel)
            panel.set_title(subjects[column] if row == 0 else "", fontsize=8)
        axes[row, 0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize=11)
    return figure
