"""The tables of a comparison: means a term, and paired differences to a reference term."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.comparison.plan import at_rate
from pipeline.evaluation.differences import paired_differences
from pipeline.metrics.catalogue import GROUPS, Metric
from pipeline.metrics.statistics import few

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


@dataclass(frozen=True)
class Table:
    """Cells as text, a row per term, for Markdown and the page."""

    title: str
    heads: list[str]
    rows: list[list[str]]

    @property
    def markdown(self) -> str:
        lines = [self.heads, ["---"] * len(self.heads), *self.rows]
        return f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
            first, second = (
                [folders[terms[name][seed]] for seed in seeds] for name in (term, reference)
            )
            table = paired_differences(first, second).reset_index()
            table.insert(0, "seeds", len(seeds))
            table.insert(0, "reference", reference)
            table.insert(0, "term", term)
            table.insert(0, "rate_target", rate)
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


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
                paired = [m for m in shown if len(apart) and m.key in set(apart["metric"])]
                if paired:
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
        favoured = FAVOURED.get(str(term), (set(),))[0]
        cells = [_mean(metric, group[metric.key]) + " ‡" * (metric.key in favoured)
                 for metric in metrics]  # fmt: skip
        rows.append([label, *cells, f"{group['beta'].mean():.3g}"])
    if any(metric.data is not None for metric in metrics):
        rows.append(["data", *(_data(metric, runs) for metric in metrics), ""])
    return Table(name, ["term", *(metric.heading for metric in metrics), "β"], rows)


def _mean(metric: Metric, values: pd.Series) -> str:
    if values.isna().any():
        return "–"
    spread = f" ± {values.std():.{metric.decimals}f}" if len(values) > 1 else ""
    return metric.shown(values.mean()) + spread


def _data(metric: Metric, runs: pd.DataFrame) -> str:
    """The originals' own value: a number that is exact, or that of another key."""
    if isinstance(metric.data, str):
        return metric.shown(runs[metric.data].mean()) if metric.data in runs else ""
    return "" if metric.data is None else f"{metric.data:g}"


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
    between = f"[{low}, {high}]"
    return f"{UNSEEN} {between}" if row["low"] <= 0 <= row["high"] else f"{mean} {between}"


def notes(
    runs: pd.DataFrame, differences: pd.DataFrame, missing: Sequence[tuple[str, str]]
) -> list[str]:
    """What a reader must know of the tables. missing: terms or runs left out, with the reasons."""
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
