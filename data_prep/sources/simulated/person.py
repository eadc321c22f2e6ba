"""One simulated person: random traits first, then the image that follows from them.

Anatomy comes from smooth, invertible deformations: stationary velocity fields and their
exponentials. Fields are (3, x, y, z) float32 on a coarse grid; displacements and velocities are in
mm, and the grid's points are `step` mm apart.
"""

from dataclasses import dataclass, fields

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from data_prep.sources.simulated.template import Template

# Deformations live on every 4th voxel, which carries the finest scale below well.
STEP = 4

# Scale of smoothing in mm -> root mean square of the velocity in mm: head shape, lobes, gyri.
SCALES = {28.0: 2.4, 14.0: 2.0, 7.0: 1.5}

# How much of a sibling's variance comes from the family.
SIBLING_SHARE = 0.6

# Below this share of its volume no piece of tissue is squeezed.
LEAST_JACOBIAN = 0.15


@dataclass(frozen=True)
class Traits:
    """Standard normal deviates that make a person's anatomy.

    velocity: (3, x, y, z) mm, on the coarse grid.
    size: (4,), one common and three along the axes; rotation, shear: (3,).
    tissue: (4,), size of the ventricles, brightness of grey and of white matter, gamma.
    """

    velocity: np.ndarray
    size: np.ndarray
    rotation: np.ndarray
    shear: np.ndarray
    tissue: np.ndarray


def coarse_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The coarse grid's points along each axis that reach over all voxels of `shape`."""
    x, y, z = (-(-n // STEP) + 1 for n in shape)
    return x, y, z


def draw_traits(seed: int, person: int, shape: tuple[int, ...]) -> Traits:
    """The traits that `seed` and `person` decide, and nothing else. shape: of the fine grid."""
    rng = np.random.default_rng([seed, person, 0])
    coarse = coarse_shape(shape)
    velocity = sum(
        np.float32(strength) * smooth_noise(rng, (3, *coarse), scale / STEP)
        for scale, strength in SCALES.items()
    )
    return Traits(np.asarray(velocity), *(rng.standard_normal(n) for n in (4, 3, 3, 4)))


def sibling(family: Traits, own: Traits) -> Traits:
    """Traits of somebody who shares SIBLING_SHARE of the variance with `family`."""
    a, b = SIBLING_SHARE**0.5, (1 - SIBLING_SHARE) ** 0.5
    return Traits(
        *((a * getattr(family, f.name) + b * getattr(own, f.name)) for f in fields(Traits))
    )


def render(traits: Traits, template: Template, rng: np.random.Generator) -> np.ndarray:
    """The skull-stripped T1-weighted image on the template's grid: (X, Y, Z) int16.

    Background is exactly 0 and brain is at least 1. `rng` draws what differs from scan to scan:
    bias field, noise, gain.
    """
    shape = template.t1.shape
    sources = _sources(traits, template)
    # Sampled where a coarse look finds brain nearby; the rest is background anyway.
    coarse_mask = ndimage.map_coordinates(template.mask, sources, np.float32, order=1)
    near = np.flatnonzero(refine(coarse_mask, STEP, shape) > 0.02)
    where = np.stack([refine(axis, STEP, shape).reshape(-1)[near] for axis in sources])
    brain = ndimage.map_coordinates(template.mask, where, np.float32, order=1) >= 0.5
    near, where = near[brain], where[:, brain]
    signal = ndimage.map_coordinates(_contrast(traits, template), where, order=1)

    strength, sigma = rng.uniform(0.05, 0.15), rng.uniform(0.012, 0.03)
    gain = rng.uniform(600, 1100)
    field = smooth_noise(rng, coarse_shape(shape), 45 / STEP)
    bias = np.exp(np.float32(strength) * refine(field, STEP, shape))
    signal *= bias.reshape(-1)[near]
    # The magnitude of a complex signal whose two parts carry Gaussian noise (Rice).
    real, imaginary = rng.standard_normal((2, len(near)), dtype=np.float32) * np.float32(sigma)
    signal = np.hypot(signal + real, imaginary)
    image = np.zeros(template.t1.size, np.int16)
    image[near] = np.clip(np.round(signal * gain), 1, 32767)
    return image.reshape(shape)


def _sources(traits: Traits, template: Template) -> np.ndarray:
    """(3, x, y, z) float32: the place in the template, in voxels, that each coarse point shows."""
    coarse = coarse_shape(template.t1.shape)
    # Looking towards the ventricles from their surroundings makes them larger.
    ventricle_size = np.float32(1.6 + 2.2 * traits.tissue[0])
    velocity = traits.velocity + ventricle_size * _towards_ventricles(template, coarse)
    displacement = safe_exponential(velocity, STEP)
    rotation = Rotation.from_rotvec(np.radians(1.5) * traits.rotation).as_matrix()
    scale = np.exp(-(0.018 * traits.size[0] + 0.018 * traits.size[1:]))
    shear = np.eye(3)
    shear[[0, 0, 1], [1, 2, 2]] = 0.015 * traits.shear
    linear = rotation @ np.diag(scale) @ shear
    centre = (np.array(template.t1.shape).reshape(3, 1, 1, 1) - 1) / 2
    place = np.tensordot(linear, STEP * np.indices(coarse) - centre, 1) + centre
    return (place + displacement).astype(np.float32)


def _towards_ventricles(template: Template, coarse: tuple[int, int, int]) -> np.ndarray:
    """(3, x, y, z) on the coarse grid: vectors towards the nearest ventricle wall, at most 1."""
    soft = ndimage.gaussian_filter(template.ventricles[(slice(None, None, STEP),) * 3], 4 / STEP)
    slope = np.stack(np.gradient(soft))
    pad = [(0, n - m) for n, m in zip(coarse, soft.shape, strict=True)]
    return np.pad(slope / np.abs(slope).max(), [(0, 0), *pad])


def _contrast(traits: Traits, template: Template) -> np.ndarray:
    """The template's intensities with this person's contrast between tissues."""
    _, grey, white, gamma = np.clip(traits.tissue, -2.5, 2.5).astype(np.float32)
    tissue = 1 + np.float32(0.05) * grey * template.grey + np.float32(0.03) * white * template.white
    return (template.t1 ** np.exp(np.float32(0.12) * gamma)) * tissue


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
