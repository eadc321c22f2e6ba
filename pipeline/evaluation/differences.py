"""Paired differences of runs that were scored on the same subjects."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.errors import InputError
from pipeline.metrics.statistics import over_families

Rows = str | Path | pd.DataFrame
"""The folder of an evaluation, or the rows of its per_subject.csv."""

# Columns with which rows are labelled.
LABELS = {"subject", "family", "split", "slices"}


def paired_differences(
    first: Rows | Sequence[Rows], second: Rows | Sequence[Rows], level: float = 0.95
) -> pd.DataFrame:
    """Mean over families of first − second, and its interval, for every metric that both have.

    How hard a subject is cancels, as the subjects are the same. An interval that holds 0 shows no
    difference. Student's t over families; seeds are averaged within subjects first, so the interval
    is about other families and these very runs, not about other seeds.

    Args:
        first, second: each the folder of an evaluation, such as WORK/runs/RUN/evaluation, or the
            rows of its per_subject.csv; for several seeds a list of them.
        level: coverage, between 0 and 1.

    Returns:
        A row per metric (the index): mean, low, high, families. None is NaN: low and high of one
        family, all three where a subject's score is not finite.

    Raises:
        InputError: a table can't be read, or the two have no subject in common.

    Example:
        >>> import pandas as pd
        >>> rows = pd.DataFrame({"subject": list("abc"), "psnr": [30, 20, 25]})
        >>> other = rows.assign(psnr=[28, 19, 22])
        >>> paired_differences(rows, other).loc["psnr"].round(2).to_dict()
        {'mean': 2.0, 'low': -0.48, 'high': 4.48, 'families': 3.0}
    """
    left, right = _averaged(first), _averaged(second)
    shared = left.index.intersection(right.index)
    if shared.empty:
        raise InputError(
            "the two have no subject in common: score them on the same store and split"
        )
    families = left["family"].loc[shared].tolist()
    metrics = [key for key in left.columns if key not in LABELS and key in right]
    apart = left.loc[shared, metrics] - right.loc[shared, metrics]
    rows = {key: over_families(apart[key].to_numpy(), families, level) for key in metrics}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])
    return table.astype(float).assign(families=len(set(families))).rename_axis("metric")


def _averaged(runs: Rows | Sequence[Rows]) -> pd.DataFrame:
    """Scores by subject, means over runs; a subject that a run lacks has NaN."""
    tables = [_read(rows) for rows in ([runs] if isinstance(runs, Rows) else runs)]
    numbers = [table.select_dtypes("number") for table in tables]
    mean = sum(numbers[1:], numbers[0]) / len(numbers)
    families = tables[0].get("family", pd.Series(dtype=object)).reindex(mean.index)
    return mean.assign(family=families.fillna(pd.Series(mean.index, mean.index)))


def _read(rows: Rows) -> pd.DataFrame:
    if isinstance(rows, pd.DataFrame):
        return rows.set_index("subject")
    path = Path(rows) / "per_subject.csv"
    labels = dict.fromkeys(("subject", "family", "split"), str)
    try:  # a subject may be called 01, or NA
        table = pd.read_csv(path, dtype=labels, keep_default_na=False, na_values=[""])
        return table.set_index("subject")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no table of an evaluation: score the run ({error})") from error
