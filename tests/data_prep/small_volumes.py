"""Small volumes that tests write: a blob with structure, not symmetric in any axis, and a head of
the size of an adult's in a few voxels."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

LAYOUT = "{subject}/T1w/T1w_acpc_dc_restore_brain.nii.gz"
MM = 4.0


def brain(shape: tuple[int, int, int] = (26, 30, 22), seed: int = 0) -> np.ndarray:
    """(X, Y, Z) int16 in RAS: an off-centre ellipsoid of smooth noise from 200 to 1000, else 0."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    noise = (noise - noise.min()) / np.ptp(noise)
    radius = sum(
        ((np.arange(n).reshape([-1 if a == axis else 1 for a in range(3)]) - 0.47 * n) / (0.4 * n))
        ** 2
        for axis, n in enumerate(shape)
    )
    return np.where(radius < 1, 200 + 800 * noise, 0).astype(np.int16)


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


def affine(side: float = MM) -> np.ndarray:
    """Of voxels of `side` that run to the right, to the front and up."""
    place = np.diag([side, side, side, 1.0])
    place[:3, 3] = -20 * side
    return place


def write_nifti(path: Path, data: np.ndarray, place: np.ndarray | None = None) -> Path:
    """Write a .nii or .nii.gz file; without an affine, 1 mm RAS."""
    return save(path, data, np.eye(4) if place is None else place, unit=None, forms=(2, 0))


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
    if issubclass(kind, nib.filebasedimages.SerializableImage):  # nib.save changes some endings
        content = image.to_bytes()
        packed = path.name.lower().endswith(("gz", "mgz"))
        path.write_bytes(gzip.compress(content, 1) if packed else content)
    else:
        nib.save(image, path)
    return path


def write_cohort(root: Path, names: list[str], template: str = LAYOUT) -> Path:
    """A folder of small subjects, each a volume of their own."""
    for name in names:
        path = root / template.replace("{subject}", name)
        write_nifti(path, brain(seed=int.from_bytes(name.encode(), "big") % 2**32))
    return root


def shard_of(store: Path, subject: str) -> Path:
    """A subject's shard in a store's folder."""
    (shard,) = (store / "slices").glob(f"{subject}.*.npy")
    return shard
