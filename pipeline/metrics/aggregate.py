"""From slices to subjects to one number with its interval.

Slices of one subject are not independent, so the unit is the subject: mean over the slices of a
subject, then over subjects, and the bootstrap resamples subjects (clusters of slices).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Interval = dict[str, float | None]

# Indices drawn at once: 20,000 subjects (CelebA's test images) times 2,000 draws are 40 million.
_BLOCK = 4_000_000


def bootstrap(
    values: NDArray[np.floating], samples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean over subjects and its percentile bootstrap interval, by `scipy.stats.bootstrap`.

    Efron, Bootstrap Methods, Annals of Statistics 1979. The same seed and number of subjects draw
    the same subjects, so that the intervals of several metrics belong together (paired).

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
    mean = low = high = float(values.mean())
    if len(values) > 1:
        from scipy import stats  # takes half a second, which reading metrics need not wait for

        found = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=samples,
            batch=max(1, _BLOCK // len(values)),
            confidence_level=level,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        # Rounding of equal subjects' resampled means must not put the mean outside.
        low, high = min(float(found.low), mean), max(float(found.high), mean)
    return {"mean": mean, "low": low, "high": high}


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
