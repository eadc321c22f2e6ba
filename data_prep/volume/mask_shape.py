"""What is needed of a mask: area of each slice, and the extent of its largest piece.

A mask is looked at as runs of voxels along the axis that memory runs along. An HCP brain has about
25,000 of them in place of 21 million voxels.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# With more runs (a mask of noise), labelling voxels is the better way.
MOST_RUNS = 1_000_000


@dataclass(frozen=True)
class MaskShape:
    """areas: per axis the voxels of each slice across it, int64.

    bounds: per axis the first and last slice of the largest face-connected piece; of pieces of one
    size the one that comes first in C order. largest: voxels of that piece.
    """

    areas: tuple[np.ndarray, ...]
    bounds: tuple[tuple[int, int], ...]
    largest: int


def mask_shape(mask: np.ndarray) -> MaskShape:
    """Areas and bounds of a non-empty (X, Y, Z) bool mask; views cost nothing extra."""
    order, flips = _in_memory_order(mask)
    stored = mask.transpose(order)[flips]
    plane, row, first, last = _runs(stored)
    length = last - first
    n_planes, n_rows, n_columns = stored.shape
    edges = np.bincount(first, minlength=n_columns + 1) - np.bincount(last, minlength=n_columns + 1)
    areas = [
        np.bincount(plane, length, n_planes).astype(np.int64),
        np.bincount(row, length, n_rows).astype(np.int64),
        np.cumsum(edges[:-1]),
    ]
    label = _joined(stored.shape, plane, row, first, last) if len(plane) <= MOST_RUNS else None
    sizes = np.zeros(2) if label is None else np.bincount(label, length)
    if label is None or np.count_nonzero(sizes == sizes.max()) > 1:
        bounds, largest = _largest_by_voxels(mask)
    else:
        largest = int(sizes.max())
        own = label == sizes.argmax()
        found = [(plane, plane), (row, row), (first, last - 1)]
        stored_bounds = [(int(a[own].min()), int(b[own].max())) for a, b in found]
        bounds = [(0, 0)] * 3
        for axis, flip, (low, high), n in zip(
            order, flips, stored_bounds, stored.shape, strict=True
        ):
            bounds[axis] = (low, high) if flip.step > 0 else (n - 1 - high, n - 1 - low)
    by_axis = [areas[order.index(axis)] for axis in range(3)]
    turned = [area[:: flips[order.index(axis)].step] for axis, area in enumerate(by_axis)]
    return MaskShape(tuple(turned), tuple(bounds), largest)


def _in_memory_order(array: np.ndarray) -> tuple[list[int], tuple[slice, ...]]:
    """How to transpose and then flip `array` so that it runs as memory does."""
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    flips = tuple(slice(None, None, -1 if array.strides[a] < 0 else 1) for a in order)
    return order, flips


def _runs(stored: np.ndarray) -> tuple[np.ndarray, ...]:
    """Plane, row, first column and the column after the last of each run, in the order of memory"""
    _, n_rows, n_columns = stored.shape
    parts = []
    closed = np.zeros((n_rows, n_columns + 2), bool)  # a run ends where its row does
    for number, values in enumerate(stored):
        if not values.any():
            continue
        closed[:, 1:-1] = values
        change = np.flatnonzero(closed[:, 1:] != closed[:, :-1])
        row, column = np.divmod(change, n_columns + 1)
        parts.append((np.full(len(row) // 2, number), row[::2], column[::2], column[1::2]))
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _joined(
    shape: tuple[int, ...],
    plane: np.ndarray,
    row: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
) -> np.ndarray:
    """The number of the face-connected piece that each run belongs to."""
    _, n_rows, n_columns = shape
    line = (plane * n_rows + row) * n_columns
    starts, ends = line + first, line + last
    pairs = []
    for step, candidates in ((1, row < n_rows - 1), (n_rows, slice(None))):
        runs = np.arange(len(line))[candidates]
        # Runs of the neighbouring line that overlap: those from `begin` up to `end`.
        begin = np.searchsorted(ends, starts[runs] + step * n_columns, "right")
        end = np.searchsorted(starts, ends[runs] + step * n_columns, "left")
        count = np.maximum(end - begin, 0)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        pairs.append((np.repeat(runs, count), np.repeat(begin, count) + within))
    one, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(line), len(line)))
    return connected_components(graph.tocsr(), directed=False)[1]


def _largest_by_voxels(mask: np.ndarray) -> tuple[list[tuple[int, int]], int]:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.reshape(-1))
    sizes[0] = 0
    box = ndimage.find_objects(labels)[sizes.argmax() - 1]
    return [(part.start, part.stop - 1) for part in box], int(sizes.max())
