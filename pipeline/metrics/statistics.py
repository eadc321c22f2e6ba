"""From slices to subjects to families to one number with its interval; differences of runs.

Slices of a subject, sessions of a subject and siblings are not independent, so the unit of every
interval is the family: the mean over a subject's slices, then over a family's subjects, then over
families.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

if TYPE_CHECKING:  # a training, which counts families, runs without pandas
    import pandas as pd

Interval = dict[str, float | None]
Rows = Union[str, Path, "pd.DataFrame"]
"""The folder of an evaluation, or the rows of its per_subject.csv."""

# Columns of a table of subjects that are no scores.
LABELS = ("subject", "family", "split", "slices")
# Below so many families an interval is as uncertain as the deviation it is made of.
FEW_FAMILIES = 8
# Below so many the coverage of a law that was calibrated on them is off by more than .05 or so on
# others, where families differ by a fifth.
FEW_CALIBRATED = 5


def family_means(values: NDArray[np.floating], families: Sequence[str]) -> NDArray[np.float64]:
    """One number a family, the mean over its subjects: (F,), families in order of appearance.

    Args:
        values: (S,) one number a subject or session.
        families: the name of each one's family, S of them.

    Raises:
        ValueError: values that are not (S,), or another number of families.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) != len(families):
        raise ValueError(f"values must be (S,) with S families: {values.shape}, {len(families)}")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(families))}
    places = np.array([numbers[name] for name in families], dtype=np.intp)
    return np.bincount(places, values, len(numbers)) / np.bincount(places, minlength=len(numbers))


def interval(values: NDArray[np.floating], level: float = 0.95) -> Interval:
    """Mean of independent values and Student's t interval (Student, Biometrika 1908).

    Args:
        values: (F,) one number a family.
        level: coverage, between 0 and 1.

    Returns:
        {"mean", "low", "high"} in the unit of the values; low and high are None for one value. All
        three are None, which JSON can hold as NaN cannot, where there is no value or one is not
        finite: a mean over only some of the families would mislead.

    Raises:
        ValueError: not one-dimensional, or a level outside (0,1).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not 0.0 < level < 1.0:
        raise ValueError(f"values must be (F,), level in (0,1), not {values.shape} and {level}")
    if not len(values) or not np.isfinite(values).all():
        return single(None)
    mean = float(values.mean())
    if len(values) == 1:
        return single(mean)
    from scipy import special  # takes a while, which reading metrics need not wait for

    quantile = float(special.stdtrit(len(values) - 1, 0.5 + level / 2))
    half = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def single(value: float | None) -> Interval:
    """A number that has no interval: of a whole set of images, or of one family.

    The mean, too, is None where the number is undefined.
    """
    return {"mean": value, "low": None, "high": None}


def over_families(
    values: NDArray[np.floating], families: Sequence[str], level: float = 0.95
) -> Interval:
    """`interval` of `family_means`: of values (S,), one a subject, each with its family."""
    return interval(family_means(values, families), level)


def aggregate(
    per_subject: Mapping[str, NDArray[np.floating]], families: Sequence[str], level: float = 0.95
) -> dict[str, Interval]:
    """`over_families` of every metric, (S,) values each, ready for metrics.json."""
    return {name: over_families(values, families, level) for name, values in per_subject.items()}


def paired_differences(
    first: Rows | Sequence[Rows], second: Rows | Sequence[Rows], level: float = 0.95
) -> "pd.DataFrame":
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
    import pandas as pd

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


def _averaged(runs: Rows | Sequence[Rows]) -> "pd.DataFrame":
    """Scores by subject, means over runs; a subject that a run lacks has NaN."""
    import pandas as pd

    every = [runs] if isinstance(runs, str | Path | pd.DataFrame) else runs
    tables = [_read(rows) for rows in every]
    numbers = [table.select_dtypes("number") for table in tables]
    mean = sum(numbers[1:], numbers[0]) / len(numbers)
    families = tables[0].get("family", pd.Series(dtype=object)).reindex(mean.index)
    return mean.assign(family=families.fillna(pd.Series(mean.index, mean.index)))


def _read(rows: Rows) -> "pd.DataFrame":
    import pandas as pd

    if isinstance(rows, pd.DataFrame):
        return rows.set_index("subject")
    path = Path(rows) / "per_subject.csv"
    labels = dict.fromkeys(("subject", "family", "split"), str)
    try:  # a subject may be called 01, or NA
        table = pd.read_csv(path, dtype=labels, keep_default_na=False, na_values=[""])
        return table.set_index("subject")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no table of an evaluation: score the run ({error})") from error


def few(families: int) -> str:
    """The note beside intervals over so few families; empty where they are enough."""
    if families >= FEW_FAMILIES:
        return ""
    if families == 1:
        return "one family: no interval can be given"
    return f"only {families} families: intervals are wide and depend on who they are"


def few_calibrated(families: int) -> str:
    """The note on a law that was calibrated on so few families; empty of enough."""
    if families >= FEW_CALIBRATED:
        return ""
    if families == 0:
        return (
            "no validation family calibrated the fitted law, but training subjects did: on "
            "others it is overconfident"
        )
    named = "one family" if families == 1 else f"{families} families"
    return f"only {named} calibrated the fitted law: its coverage of others may be off by .05"
