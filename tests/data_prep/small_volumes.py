"""Small volumes that tests write: a blob with structure, not symmetric in any axis."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

LAYOUT = "{subject}/T1w/T1w_acpc_dc_restore_brain.nii.gz"


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


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write a .nii or .nii.gz file; without an affine, 1 mm RAS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
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
