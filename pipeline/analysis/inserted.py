"""Lesions put into healthy slices, and how well a map finds them.

A decoder can be tested before it meets patients only where the answer is known: a disc of one
contrast and diameter, its edge softened by the pixels, is put into the brain of a healthy subject.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

# Sub-pixels per side by which the share of a pixel within the disc is counted.
FINE = 25
THRESHOLDS = 400
EIGHT = np.ones((3, 3), int)


@dataclass(frozen=True)
class Lesion:
    """diameter in mm; contrast in intensity, negative: darker than what was there."""

    diameter: float
    contrast: float

    @property
    def side(self) -> Literal["dark", "bright"]:
        """The side of what was there on which it stands out."""
        return "dark" if self.contrast < 0 else "bright"


def share(shape: tuple[int, int], centre: tuple[int, int], diameter: float) -> np.ndarray:
    """The share of each pixel within a disc: (H,W) in [0,1], summing to its area in pixels.

    centre: row and column of a pixel, in whose middle the disc's centre lies; diameter in pixels.
    """
    offsets = (np.arange(FINE) + 0.5) / FINE - 0.5
    reach = math.ceil(diameter / 2) + 1
    around = np.arange(-reach, reach + 1)
    fine = (around[:, None] + offsets).reshape(-1)
    inside = fine[:, None] ** 2 + fine**2 <= (diameter / 2) ** 2
    covered = np.zeros((shape[0] + 2 * reach, shape[1] + 2 * reach))
    rows, columns = (slice(c, c + len(around)) for c in centre)
    covered[rows, columns] = inside.reshape(len(around), FINE, -1, FINE).mean(axis=(1, 3))
    return covered[reach:-reach, reach:-reach]


def place(image: np.ndarray, diameter: float, random: np.random.Generator) -> tuple[int, int]:
    """Row and column for a lesion wholly within the brain of an image (H,W), at random.

    Where no pixel is that far from the surround: one of those that are furthest from it.
    """
    depth = ndimage.distance_transform_edt(np.pad(image > 0, 1))[1:-1, 1:-1]
    deep = np.argwhere(depth > min(diameter / 2 + 1, depth.max() - 1e-9))
    row, column = deep[random.integers(len(deep))]
    return int(row), int(column)


def insert(
    images: Tensor, lesion: Lesion, spacing: float, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Put one lesion into each image.

    Args:
        images: (n,1,H,W) in [0,1].
        lesion: its diameter and contrast.
        spacing: mm per pixel.
        random: decides the places.

    Returns:
        The changed images, still in [0,1], and where their lesions are, (n,1,H,W) bool: pixels half
        covered by the disc, and the one in its centre.
    """
    changed, where = images.clone(), torch.zeros_like(images, dtype=torch.bool)
    diameter = lesion.diameter / spacing
    height, width = images.shape[-2:]
    for k, image in enumerate(images[:, 0].numpy()):
        centre = place(image, diameter, random)
        covered = share((height, width), centre, diameter)
        changed[k, 0] += torch.from_numpy(lesion.contrast * covered).to(images.dtype)
        where[k, 0] = torch.from_numpy(covered >= 0.5)
        where[k, 0][centre] = True
    return changed.clamp(0, 1), where


def threshold_at(maps: Tensor, brain: Tensor, false_positives: float) -> float:
    """The threshold at which maps of healthy slices show so many false positives.

    A false positive is a piece of pixels above the threshold that touch, be it at corners. The
    least that leaves at most so many is taken, of 400 between the maps' median and maximum.

    Args:
        maps: (n,1,H,W), at least 0, larger is more unexpected.
        brain: (n,1,H,W), bool.
        false_positives: pieces per slice, on average.

    Returns:
        In the maps' unit.
    """
    values = torch.where(brain, maps, 0)[:, 0].numpy()
    inside = values[brain[:, 0].numpy()]
    shares = 1 - np.geomspace(0.5, 0.5 / max(len(inside), 2), THRESHOLDS)
    threshold = math.inf
    for lower in np.unique(np.quantile(inside, np.append(shares, 1.0)))[::-1]:
        pieces = sum(ndimage.label(image > lower, EIGHT)[1] for image in values)
        if pieces > false_positives * len(values):
            break
        threshold = float(lower)
    return threshold


def sensitivity(maps: Tensor, where: Tensor, threshold: float) -> float:
    """The share of slices (n,1,H,W) whose lesion shows: one pixel of it above the threshold."""
    largest = torch.where(where, maps, -torch.inf).flatten(1).amax(dim=1)
    return float((largest > threshold).double().mean())
