"""From slices to subjects to families to one number with its interval.

Slices of a subject, sessions of a subject and siblings are not independent, so the unit of every
interval is the family: the mean over a subject's slices, then over a family's subjects, then over
families.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Interval = dict[str, float | None]

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
    names = {name: place for place, name in enumerate(dict.fromkeys(families))}
    places = np.array([names[name] for name in families], dtype=np.intp)
    return np.bincount(places, values, len(names)) / np.bincount(places, minlength=len(names))


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
        raise ValueError(
            f"values must be (F,), got {values.shape}, and level within (0,1): {level}"
        )
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
    per_subject: Mapping[str, NDArray[np.floating]],
    families: Sequence[str],
    level: float = 0.95,
) -> dict[str, Interval]:
    """`over_families` of every metric, ready for metrics.json.

    Args:
        per_subject: metric name to (S,) values, the same subjects in the same order for all.
        families: the family of each subject, S of them.
        level: coverage, between 0 and 1.
    """
    return {name: over_families(values, families, level) for name, values in per_subject.items()}


def paired_difference(
    values: Mapping[str, float],
    other: Mapping[str, float],
    families: Mapping[str, str],
    level: float = 0.95,
) -> Interval:
    """Mean over families of values − other, and its interval, over the subjects that both have.

    What two runs share, such as how hard a subject is, cancels. An interval that holds 0 shows no
    difference.

    Args:
        values: subject to number, of one run.
        other: of the other run.
        families: subject to family.
        level: coverage, between 0 and 1.
    """
    subjects = [name for name in values if name in other]
    differences = np.array([values[name] - other[name] for name in subjects])
    return over_families(differences, [families[name] for name in subjects], level)


def few(families: int) -> str:
    """What must be said beside intervals over so few families; empty where they are enough."""
    if families >= FEW_FAMILIES:
        return ""
    if families == 1:
        return "one family: no interval can be given"
    return f"only {families} families: intervals are wide and depend on who they are"


def few_calibrated(families: int) -> str:
    """What must be said of a law that was calibrated on so few families; empty of enough."""
    if families >= FEW_CALIBRATED:
        return ""
    if families == 0:
        return (
            "no validation family calibrated the fitted law, but training subjects did: on "
            "others it is overconfident"
        )
    named = "one family" if families == 1 else f"{families} families"
    return f"only {named} calibrated the fitted law: its coverage of others may be off by .05"
