"""Smooth, invertible deformations: stationary velocity fields and their exponentials.

Fields are (3, x, y, z) float32 on a coarse grid; displacements and velocities are in mm, and the
grid's points are `step` mm apart.
"""

import numpy as np
from scipy import ndimage

# Below this share of its volume no piece of tissue is squeezed.
LEAST_JACOBIAN = 0.15


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """A random field of `shape` with mean square 1, smoothed by `sigma` points along 3 last axes.

    The noise is drawn on a wider grid, so that its strength does not fall towards the edges.
    """
    pad = int(np.ceil(2 * sigma))
    wide = (*shape[:-3], *(n + 2 * pad for n in shape[-3:]))
    field = rng.standard_normal(wide, dtype=np.float32)
    sigmas = (0,) * (len(shape) - 3) + (sigma,) * 3
    field = ndimage.gaussian_filter(field, sigmas, mode="wrap", truncate=3)
    field = field[(..., *(slice(pad, pad + n) for n in shape[-3:]))]
    return field / np.sqrt(np.mean(field**2))


def exponential(velocity: np.ndarray, step: float, squarings: int = 6) -> np.ndarray:
    """The displacement at time 1 of the flow along `velocity`, by scaling and squaring.

    The flow of a smooth field has an inverse whatever its size (Arsigny 2006, doi
    10.1007/11866565_113). velocity, result: (3, x, y, z), mm.
    """
    grid = np.indices(velocity.shape[1:], dtype=np.float32)
    displacement = velocity / np.float32(2**squarings)
    for _ in range(squarings):
        there = grid + displacement / np.float32(step)
        moved = [ndimage.map_coordinates(d, there, order=1, mode="nearest") for d in displacement]
        displacement = displacement + np.stack(moved)
    return displacement


def jacobian(displacement: np.ndarray, step: float) -> np.ndarray:
    """(x, y, z) determinant of the map x -> x + displacement: the local ratio of volumes."""
    gradients = [np.gradient(d, step) for d in displacement]
    matrix = np.stack([np.stack(g, -1) for g in gradients], -2) + np.eye(3, dtype=np.float32)
    return np.linalg.det(matrix)


def safe_exponential(velocity: np.ndarray, step: float) -> np.ndarray:
    """`exponential`, of a weaker field where sampling on the grid would fold or crush tissue."""
    while True:
        displacement = exponential(velocity, step)
        if jacobian(displacement, step).min() > LEAST_JACOBIAN:
            return displacement
        velocity = velocity * np.float32(0.85)


def refine(field: np.ndarray, step: int, shape: tuple[int, int, int]) -> np.ndarray:
    """(..., x, y, z) at every `step`-th voxel, from voxel 0 on -> (..., *shape), linear."""
    # The first axis last: the large copies are then of whole planes, which is quick.
    for axis in (-1, -2, -3):
        position = np.arange(shape[axis], dtype=np.float32) / np.float32(step)
        low = np.minimum(position.astype(int), field.shape[axis] - 2)
        weight = (position - low).astype(np.float32).reshape(-1, *(1,) * (-1 - axis))
        below, field = field.take(low, axis), field.take(low + 1, axis)
        field -= below
        field *= weight
        field += below
    return field
