"""The packaged ICBM152 template that the simulated cohort is made from.

ICBM 2009a non-linear symmetric average of 152 adults (Fonov 2011, doi
10.1016/j.neuroimage.2010.07.033), 1 mm, as it comes with nilearn: T1 and the probabilities of
grey and white matter.
"""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from data_prep.common.errors import InputError

FILES = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"

# Depth below the brain's surface from which dark tissue counts as ventricle, mm.
VENTRICLE_DEPTH_MM = 22
SMALLEST_VENTRICLE_MM3 = 1000


@dataclass(frozen=True)
class Template:
    """The brain of the template, cropped with a margin.

    t1: (X, Y, Z) float32, white matter at about 1, 0 outside the brain, sharpened: the average of
        152 people is smoother than any one of them.
    grey, white: (X, Y, Z) float32 probabilities.
    ventricles: (X, Y, Z) float32, about 1 inside the lateral ventricles.
    mask: (X, Y, Z) bool.
    affine: (4, 4), voxel indices to RAS mm; voxels are 1 mm, axes run right, front, up.
    """

    t1: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    ventricles: np.ndarray
    mask: np.ndarray
    affine: np.ndarray


@cache
def load_template(margin: int = 20) -> Template:
    """The template, read once per process; `margin` mm around the brain leave room to deform.

    Raises:
        InputError: nilearn is not installed or does not carry the files.
    """
    (t1, affine), (grey, _), (white, _) = (_read(kind) for kind in ("t1", "gm", "wm"))
    found = ndimage.find_objects((t1 > 0.1).view(np.int8))[0]
    # Padded first: the brain stem runs out of the template's field of view.
    t1, grey, white = (np.pad(a, margin) for a in (t1, grey, white))
    box = tuple(slice(s.start, s.stop + 2 * margin) for s in found)
    t1, grey, white = (np.ascontiguousarray(a[box]) for a in (t1, grey, white))
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [s.start - margin for s in found]

    mask = ndimage.binary_opening(t1 > 0.1, iterations=2)
    t1 /= np.median(t1[white > 0.9])
    sharp = t1 + (t1 - ndimage.gaussian_filter(t1, 1.5, truncate=3))
    sharp = np.where(mask, np.clip(sharp, 0.02, 1.3), np.float32(0))
    dark = (t1 < 0.55) & (grey < 0.5) & (white < 0.3)
    return Template(sharp, grey, white, _ventricles(mask, dark), mask, moved)


def _ventricles(mask: np.ndarray, dark: np.ndarray) -> np.ndarray:
    """What is dark, deep inside and of some size, with a soft edge."""
    # Every other voxel is enough for a depth.
    coarse = 2 * ndimage.distance_transform_edt(np.pad(mask[::2, ::2, ::2], 1))[1:-1, 1:-1, 1:-1]
    deep = (coarse > VENTRICLE_DEPTH_MM).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    deep = deep[tuple(slice(n) for n in mask.shape)]
    labels, _ = ndimage.label(ndimage.binary_opening(dark & deep))
    sizes = np.bincount(labels.ravel())
    large = sizes >= SMALLEST_VENTRICLE_MM3
    large[0] = False
    return ndimage.gaussian_filter(large[labels].astype(np.float32), 1)


def _read(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """One of nilearn's files as float32 values and affine, found without importing nilearn."""
    found = importlib.util.find_spec("nilearn")
    if found is None or found.origin is None:
        raise InputError("prepare.source template_cohort needs the package nilearn: install it")
    path = Path(found.origin).parent / "datasets" / "data" / FILES.format(kind)
    if not path.is_file():
        raise InputError(
            f"prepare.source template_cohort: no {path.name} in nilearn: install 0.12 or newer"
        )
    image = nib.as_closest_canonical(nib.load(path))
    # Stored as uint8 for the range 0 to 1.
    return np.asarray(image.dataobj, np.float32) / np.float32(255), image.affine
