"""One simulated person: random traits first, then the image that follows from them."""

from dataclasses import dataclass, fields

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from data_prep.sources.simulated.deformation import refine, safe_exponential, smooth_noise
from data_prep.sources.simulated.template import Template

# Deformations live on every 4th voxel, which carries the finest scale below well.
STEP = 4

# Scale of smoothing in mm -> root mean square of the velocity in mm: head shape, lobes, gyri.
SCALES = {28.0: 2.4, 14.0: 2.0, 7.0: 1.5}

# How much of a sibling's variance comes from the family.
SIBLING_SHARE = 0.6


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
    return Traits(
        np.asarray(velocity),
        rng.standard_normal(4),
        rng.standard_normal(3),
        rng.standard_normal(3),
        rng.standard_normal(4),
    )


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
