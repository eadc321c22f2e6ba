"""One subject's image as the store's slices are cut from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from data_prep.config import PrepareConfig
from data_prep.entries import NativeVolume
from data_prep.volume.brain import brain_of_mask
from data_prep.volume.findings import mask_shape
from data_prep.volume.slices import Slices, check_grid, cut_checked, voxel_sizes
from data_prep.volume.transforms import IMAGE, MASK, Scan, apply, scan_key, volume_transforms
from data_prep.volume.verify import VerifiedVolume, read_verified


@dataclass(frozen=True)
class Volume:
    """A volume whose axes run to the right, to the front and up.

    data: (X, Y, Z) float32 in [0, 1], exactly 0 outside the brain.
    mask: (X, Y, Z) bool, the brain.
    affine: (4, 4) float64, voxel indices to RAS mm. storage: that of the file's own axes.
    spacing: (3,) float64, voxel size in mm.
    source_sha256: of the file's bytes.
    flags: as VerifiedVolume.flags.
    native: what it was like on disk, and the intensities that became 0 and 1.
    name: of its file.
    """

    data: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    storage: np.ndarray
    spacing: np.ndarray
    source_sha256: str
    flags: tuple[str, ...]
    native: NativeVolume
    name: str

    def slices(self, config: PrepareConfig) -> Slices:
        """The chain's last step: slices of a plane on the pixel grid. Raises VolumeError."""
        return cut_checked(self.data, self.affine, mask_shape(self.mask), config, self.name)


def load_volume(path: Path, mask_path: Path | None, config: PrepareConfig) -> Volume:
    """Read, check, reorient and scale one subject's image: the chain but for its last step.

    The brain is as brain.py finds it. Reorientation swaps and flips axes only: no voxel is
    interpolated.

    Raises:
        VolumeError: as `read_verified`, and mask_shape, mask_position, no_brain, no_contrast,
            implausible.
        InputError: N4 is asked for and SimpleITK is absent.
    """
    chain = volume_transforms(config)
    found = apply(chain, paths(path, mask_path), end=len(chain) - 1)
    image, mask, scan = found[IMAGE], found[MASK], found[scan_key(IMAGE)]
    affine = image.affine.numpy()
    return Volume(
        image.as_tensor()[0].numpy(),
        mask.as_tensor()[0].numpy(),
        affine,
        scan.affine,
        voxel_sizes(affine),
        scan.sha256,
        scan.flags,
        native_of(scan),
        scan.name,
    )


def paths(path: Path, mask_path: Path | None) -> dict[str, Any]:
    """What the chain begins with."""
    return {IMAGE: path} if mask_path is None else {IMAGE: path, MASK: mask_path}


def native_of(scan: Scan) -> NativeVolume:
    """A volume as it lay on disk."""
    dx, dy, dz = (float(side) for side in voxel_sizes(scan.affine))
    code = "".join(nib.aff2axcodes(scan.affine))
    low, high = scan.intensity["low"], scan.intensity["high"]
    return NativeVolume(scan.shape, (dx, dy, dz), code, low, high)


def canonical(volume: VerifiedVolume) -> tuple[np.ndarray, np.ndarray]:
    """The data (X, Y, Z) with axes to the right, front and up, as a view, and its affine."""
    orientation = nib.io_orientation(volume.affine)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(orientation, volume.data.shape)
    return nib.apply_orientation(volume.data, orientation), affine


def read_mask(
    path: Path,
    shape: tuple[int, ...],
    affine: np.ndarray,
    *,
    threshold: float = 0.5,
    assume_orientation: str = "",
) -> np.ndarray:
    """The canonical bool mask (X, Y, Z) in `path`, true where brain.py says so.

    shape, affine: of the image whose mask it is, as stored. threshold: least value of what is
    masked where it holds several. assume_orientation: as `read_verified`.

    Raises:
        VolumeError: as `read_verified`, and mask_shape, mask_position where the grids differ.
    """
    mask = read_verified(path, constant_allowed=True, assume_orientation=assume_orientation)
    check_grid(mask.data.shape, mask.affine, shape, affine, path.name)
    return brain_of_mask(torch.from_numpy(canonical(mask)[0].copy()), threshold)[0].numpy()
