"""Percentiles inside a mask, equal to numpy's bit for bit, in little memory.

np.percentile copies and sorts out every value in float64; of an HCP volume that takes longer than
unpacking it. Two order statistics are all that is needed: a sample says between which values they
lie, and only what lies there is put in order.
"""

import numpy as np

# Every so many voxels go into the sample; a number that divides no common array side.
STRIDE = 61

# Values looked at together: they stay in the processor's cache.
BLOCK = 1 << 18


def percentiles(values: np.ndarray, mask: np.ndarray, shares: list[float]) -> list[float]:
    """np.percentile(values[mask].astype(float64), shares) of finite float32 values.

    values, mask: arrays of one shape; mask is bool and not empty. Views with axes swapped or
    flipped cost nothing extra. shares: from 0 to 100.
    """
    values, mask = _flat(values, mask)
    count = int(np.count_nonzero(mask))
    # As numpy's method "linear" has it, in float64 and in this order.
    places = [(count - 1) * (np.float64(share) / 100) for share in shares]
    lower = [int(np.floor(place)) for place in places]
    pairs = _pairs(values, mask, count, lower)
    results = []
    for place, first, (low, high) in zip(places, lower, pairs, strict=True):
        t, step = place - first, np.float64(high) - np.float64(low)
        # numpy comes from the nearer end.
        near_low, near_high = low + step * t, high - step * (1 - t)
        results.append(float(near_high if t >= 0.5 else near_low))
    return results


def in_memory_order(array: np.ndarray) -> tuple[list[int], tuple[slice, ...]]:
    """How to transpose and then flip `array` so that it runs as memory does."""
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    flips = tuple(slice(None, None, -1 if array.strides[a] < 0 else 1) for a in order)
    return order, flips


def _flat(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order, flips = in_memory_order(values)
    # reshape copies what is not contiguous, such as a mask stored otherwise than its image.
    return tuple(a.transpose(order)[flips].reshape(-1) for a in (values, mask))  # type: ignore[return-value]


def _pairs(
    values: np.ndarray, mask: np.ndarray, count: int, ranks: list[int]
) -> list[tuple[np.float64, np.float64]]:
    """The ranks-th smallest value inside the mask and the one after it (itself at the end)."""
    brackets = _brackets(values, mask, count, ranks)
    below = [0] * len(ranks)
    kept: list[list[np.ndarray]] = [[] for _ in ranks]
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        inside = mask[start : start + BLOCK]
        if not inside.any():
            continue
        if not inside.all():
            block = block[inside]
        for n, (low, high) in enumerate(brackets):
            # From the side where few values lie: only those are compared a second time.
            if 2 * ranks[n] < count:
                few = block[block <= high]
                within = few >= low
                below[n] += len(few) - int(np.count_nonzero(within))
            else:
                few = block[block >= low]
                within = few <= high
                below[n] += len(block) - len(few)
            kept[n].append(few[within])
    pairs = []
    for rank, under, parts in zip(ranks, below, kept, strict=True):
        between, first = np.concatenate(parts), rank - under
        second = min(rank + 1, count - 1) - under
        if first < 0 or second >= len(between):  # the sample misled: take them all
            between, first, second = values[mask], rank, min(rank + 1, count - 1)
        between.partition(sorted({first, second}))
        pairs.append((np.float64(between[first]), np.float64(between[second])))
    return pairs


def _brackets(
    values: np.ndarray, mask: np.ndarray, count: int, ranks: list[int]
) -> list[tuple[np.float32, np.float32]]:
    """Per rank two values between which it lies, almost surely, by a sample."""
    sample = np.sort(values[::STRIDE][mask[::STRIDE]])
    found = []
    for rank in ranks:
        share = rank / count
        # Six standard deviations of the place in a random sample.
        margin = 6 * np.sqrt(len(sample) * share * (1 - share)) + 10
        low, high = int(share * len(sample) - margin), int(share * len(sample) + margin)
        found.append(
            (
                sample[low] if low >= 0 and len(sample) else np.float32(-np.inf),
                sample[high] if high < len(sample) else np.float32(np.inf),
            )
        )
    return found
