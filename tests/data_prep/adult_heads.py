"""Volumes of the size of an adult's brain, in a few voxels, and files of them that go wrong."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

MM = 4.0
OASIS = Path(__file__).parents[2].parent / "shared/data/oasis-hcp-layout"


def head(seed: int = 0) -> np.ndarray:
    """(44, 52, 44) float32 in RAS, 4 mm: an ellipsoid of 1,570 ml of 300 to 900, brighter to the
    right, to the front and up, with a bright block at the right; 0 around it."""
    shape = (44, 52, 44)
    x, y, z = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * MM for n in shape), indexing="ij")
    inside = (x / 68) ** 2 + (y / 86) ** 2 + (z / 64) ** 2 < 1
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    data = 600 + x + 0.5 * y + 0.8 * z + 400 * noise
    data[30:34, 24:30, 20:24] += 150
    return (np.clip(data, 300, 900) * inside).astype(np.float32)


def real(number: int = 0) -> np.ndarray | None:
    """A brain of OASIS at every second voxel, RAS, or None where there is none."""
    files = sorted(OASIS.glob("*/T1w/T1w_acpc_dc_restore_brain.nii.gz"))
    if not files:
        return None
    image = nib.as_closest_canonical(nib.load(files[number]))
    return np.asarray(image.dataobj, np.float32)[::2, ::2, ::2]


def affine(side: float = MM) -> np.ndarray:
    """Of voxels of `side` that run to the right, to the front and up."""
    found = np.diag([side, side, side, 1.0])
    found[:3, 3] = -20 * side
    return found


def save(
    path: Path,
    data: np.ndarray,
    place: np.ndarray | None = None,
    *,
    unit: str | None = "mm",
    forms: tuple[int, int] = (1, 1),
    kind: type = nib.Nifti1Image,
    dtype: object = None,
    big_endian: bool = False,
) -> Path:
    """Write a volume. place: affine; forms: codes of sform and qform; kind: an image class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = affine() if place is None else place
    order = {"header": kind.header_class(endianness=">")} if big_endian else {}
    values = data.astype(dtype) if dtype is not None else data
    image = kind(values, place, **order, **({"dtype": dtype} if dtype is not None else {}))
    if issubclass(kind, nib.Nifti1Pair):
        image.set_sform(place, code=forms[0])
        image.set_qform(place, code=forms[1], strip_shears=True)
        image.header["xyzt_units"] = {None: 0, "m": 1, "mm": 2, "um": 3}[unit]
    if issubclass(kind, nib.Nifti1Image):  # nib.save changes the case of some endings
        content = image.to_bytes()
        path.write_bytes(gzip.compress(content, 1) if path.suffix.lower() == ".gz" else content)
    else:
        nib.save(image, path)
    return path
