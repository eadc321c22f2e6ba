"""From slices to subjects to one number with its interval.

Slices of one person are not independent, so the unit is the subject: mean over the slices of a
subject, then over subjects, and the bootstrap draws subjects.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Interval = dict[str, float | None]

# A cohort of 20,000 (CelebA's test images) times 2,000 draws would be 40 million indices.
_BLOCK = 4_000_000


def bootstrap(
    values: NDArray[np.floating], samples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean over subjects and its percentile bootstrap interval.

    Efron, Bootstrap Methods, Annals of Statistics 1979. The same seed and number of subjects draw
    the same subjects, so that the intervals of several metrics belong together.

    Args:
        values: (S,) one number a subject.
        samples: bootstrap draws, at least 1.
        seed: of the draws.
        level: coverage, between 0 and 1.

    Returns:
        {"mean", "low", "high"} in the unit of the values. One subject gives low = high = mean.
        All three are None, which JSON can hold as NaN cannot, where there is no subject or where
        a value is not finite: a mean over only some of the subjects would mislead.

    Raises:
        ValueError: not one-dimensional, no draws, or a level outside (0,1).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"values must be (S,), got {values.shape}")
    if samples < 1 or not 0.0 < level < 1.0:
        raise ValueError(f"samples {samples} must be positive and level {level} within (0,1)")
    if not len(values) or not np.isfinite(values).all():
        return {"mean": None, "low": None, "high": None}
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(values))
    means = np.concatenate(
        [
            values[
                generator.integers(len(values), size=(min(rows, samples - start), len(values)))
            ].mean(axis=1)
            for start in range(0, samples, rows)
        ]
    )
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    mean = values.mean()
    # With one subject, or equal ones, rounding of the draws' means must not put the mean outside.
    return {"mean": float(mean), "low": float(min(low, mean)), "high": float(max(high, mean))}


def single(value: float | None) -> Interval:
    """A number that belongs to a whole set of images, so that no interval over subjects exists.

    Low and high are None, and the mean, too, where the number is undefined.
    """
    return {"mean": value, "low": None, "high": None}


def aggregate(
    per_subject: Mapping[str, NDArray[np.floating]],
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """`bootstrap` of every metric, ready for metrics.json.

    Args:
        per_subject: metric name to (S,) values, the same subjects in the same order for all.
        samples, seed, level: as in `bootstrap`.

    Returns:
        Metric name to {"mean", "low", "high"}, in the order given.

    Raises:
        ValueError: metrics of different numbers of subjects.
    """
    sizes = {name: len(values) for name, values in per_subject.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"metrics have different numbers of subjects: {sizes}")
    return {name: bootstrap(values, samples, seed, level) for name, values in per_subject.items()}
