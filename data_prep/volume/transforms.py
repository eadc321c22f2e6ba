"""From a file to slices as a MONAI chain of dictionary transforms, to print and to reuse.

    >>> chain = volume_transforms(PrepareConfig(size=64, spacing_mm=3.2))
    >>> [type(step).__name__ for step in chain.transforms]
    ['LoadVerifiedd', 'LoadVerifiedd', 'BrainMaskd', 'Orientationd', 'ScaleWithinMaskd',
     'ExtractSlicesd']

Keys are "image" and "mask"; values are paths first, then channel-first MetaTensors (1, X, Y, Z) in
RAS mm, and at the end slices (n, 1, H, W) in [0, 1]. MONAI does the reorientation and the scaling;
the other steps have no counterpart there, and can stand in any chain.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    MapTransform,
    Orientationd,
    ScaleIntensityRange,
    Transform,
)

from data_prep.config import Plane, PrepareConfig
from data_prep.errors import InputError, VolumeError
from data_prep.volume.bias_field import n4_corrected
from data_prep.volume.slices import check_grid, cut_slices, voxel_sizes
from data_prep.volume.verify import read_verified

IMAGE, MASK = "image", "mask"
# Names of both ends of each axis of RAS, which MONAI would else take from the image.
RAS = (("L", "R"), ("P", "A"), ("I", "S"))


def volume_transforms(config: PrepareConfig) -> Compose:
    """The chain that turns {"image": path, "mask": path or absent} into slices."""
    n4 = [CorrectBiasFieldd(IMAGE, MASK)] if config.n4 else []
    return Compose(
        [
            LoadVerifiedd(IMAGE),
            LoadVerifiedd(MASK, constant_allowed=True, allow_missing_keys=True),
            BrainMaskd(IMAGE, MASK),
            Orientationd([IMAGE, MASK], axcodes="RAS", labels=RAS),
            *n4,
            ScaleWithinMaskd(IMAGE, MASK, config.lower_percentile, config.upper_percentile),
            ExtractSlicesd(
                IMAGE,
                MASK,
                size=config.size,
                spacing_mm=config.spacing_mm,
                plane=config.plane,
                slice_spacing_mm=config.slice_spacing_mm,
                min_brain_area=config.min_brain_area,
                max_slices=config.max_slices,
            ),
        ]
    )


def apply(chain: Compose, data: Mapping[str, Any], end: int | None = None) -> dict[Hashable, Any]:
    """What the chain, up to step `end`, makes of the data; errors as the steps raised them.

    MONAI wraps an exception in a RuntimeError that names the step alone.

    Raises:
        VolumeError, InputError, MemoryError: of a step.
    """
    try:
        return chain(dict(data), end=end)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, VolumeError | InputError | MemoryError):
                raise cause from None
            cause = cause.__cause__
        raise


class LoadVerifiedd(MapTransform):
    """A NIfTI or MGH file -> MetaTensor (1, X, Y, Z) float32, read to the gzip checksum at its end.

    MONAI's LoadImaged reads a damaged file as if nothing were wrong with it. `meta` has
    filename_or_obj, sha256, flags, original_affine and spatial_shape. Raises VolumeError.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        constant_allowed: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.constant_allowed = constant_allowed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            path = Path(found[key])
            read = read_verified(path, constant_allowed=self.constant_allowed)
            meta = {
                "filename_or_obj": str(path),
                "sha256": read.sha256,
                "flags": read.flags,
                "original_affine": read.affine,
                "spatial_shape": np.array(read.data.shape),
            }
            found[key] = MetaTensor(
                torch.from_numpy(read.data)[None], affine=torch.from_numpy(read.affine), meta=meta
            )
        return found


class BrainMaskd(Transform):
    """The brain, bool (1, X, Y, Z): where the mask is above 0, or without one where the image is.

    Raises VolumeError (mask_shape, mask_position, no_brain) for a mask that does not lie on the
    image's own grid, or is empty.
    """

    def __init__(self, image_key: str, mask_key: str) -> None:
        self.image_key, self.mask_key = image_key, mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        image, given = found[self.image_key], found.get(self.mask_key)
        if given is not None:
            check_grid(
                given.shape[1:], given.affine.numpy(), image.shape[1:], image.affine.numpy(),
                _name(given),
            )  # fmt: skip
        mask = (image if given is None else given).as_tensor() > 0
        if not mask.any():
            raise VolumeError("no_brain", f"{_name(image)} has no voxel inside the brain")
        found[self.mask_key] = MetaTensor(mask, affine=image.affine.clone())
        return found


class CorrectBiasFieldd(Transform):
    """The image divided by its N4 bias field within the mask (needs SimpleITK)."""

    def __init__(self, image_key: str, mask_key: str) -> None:
        self.image_key, self.mask_key = image_key, mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        image = found[self.image_key]
        values, mask = _array(image), _array(found[self.mask_key])
        corrected = n4_corrected(values, mask, voxel_sizes(image.affine.numpy()))
        found[self.image_key] = _like(image, torch.from_numpy(corrected)[None])
        return found


class ScaleWithinMaskd(Transform):
    """Percentiles within the mask become 0 and 1, clipped; what lies outside the mask becomes 0.

    MONAI's ScaleIntensityRangePercentiles takes them over the whole image, most of which is
    background. `meta` gets intensity_range: what became 0 and 1. Raises VolumeError (no_contrast).
    """

    def __init__(self, image_key: str, mask_key: str, lower: float, upper: float) -> None:
        """lower, upper: percentiles, 0 to 100."""
        self.image_key, self.mask_key = image_key, mask_key
        self.lower, self.upper = lower, upper

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        image, mask = found[self.image_key], found[self.mask_key]
        values, inside = _along_memory(image), _along_memory(mask, image)
        low, high = _percentiles(values.numpy()[inside.numpy()], [self.lower, self.upper])
        if not high > low:
            raise VolumeError(
                "no_contrast", f"{_name(image)} has one intensity, {low:g}, all over the brain"
            )
        scaled = torch.empty_like(image.as_tensor())
        scale = ScaleIntensityRange(low, high)
        # A few planes at a time: what fits into a processor's cache takes a quarter of the time.
        parts = [part.split(2) for part in (_along_memory(scaled, image), values, inside)]
        for out, part, brain in zip(*parts, strict=True):
            torch.mul(torch.as_tensor(scale(part)).clamp_(0, 1), brain, out=out)
        found[self.image_key] = _like(image, scaled, intensity_range=(low, high))
        return found


class ExtractSlicesd(Transform):
    """Native slices of a plane on a square pixel grid of known size in mm, centred on the brain.

    The image becomes a MetaTensor (n, 1, H, W) whose affine maps (row, column, slice number, 1) to
    RAS mm; `meta` gets slice_indices and cropped, whether part of the brain lies outside the grid.
    The volume must be in RAS (Orientationd).
    """

    def __init__(
        self,
        image_key: str,
        mask_key: str,
        *,
        size: int,
        spacing_mm: float,
        plane: Plane = "axial",
        slice_spacing_mm: float = 3.0,
        min_brain_area: float = 0.3,
        max_slices: int = 0,
    ) -> None:
        """As the keys of the `prepare` section of these names."""
        self.image_key, self.mask_key = image_key, mask_key
        self.config = PrepareConfig(
            size=size,
            spacing_mm=spacing_mm,
            plane=plane,
            slice_spacing_mm=slice_spacing_mm,
            min_brain_area=min_brain_area,
            max_slices=max_slices,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        image, mask = found[self.image_key], found[self.mask_key]
        cut = cut_slices(_array(image), _array(mask), image.affine.numpy(), self.config)
        found[self.image_key] = MetaTensor(
            torch.from_numpy(cut.images),
            meta={
                **image.meta,
                "affine": torch.from_numpy(cut.affine),
                "slice_indices": cut.indices,
                "cropped": cut.cropped,
            },
        )
        return found


def _array(image: MetaTensor) -> np.ndarray:
    """The values (X, Y, Z) of a single channel, without a copy."""
    return image.as_tensor()[0].numpy()


def _along_memory(values: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """A view of a single channel (1, X, Y, Z) with its axes in the order of memory (of `like`)."""
    strides = (values if like is None else like)[0].stride()
    order = sorted(range(3), key=lambda axis: -strides[axis])
    plain = values.as_tensor() if isinstance(values, MetaTensor) else values
    return plain[0].permute(order)


def _percentiles(values: np.ndarray, percent: list[float]) -> list[float]:
    """As np.percentile of float64, without a copy in float64. Sorts `values` (n,) in part."""
    position = (len(values) - 1) * np.array(percent) / 100
    below = position.astype(int)
    above = np.minimum(below + 1, len(values) - 1)
    values.partition(np.unique([below, above]))
    low, high = values[below].astype(np.float64), values[above].astype(np.float64)
    return (low + (high - low) * (position - below)).tolist()


def _name(image: MetaTensor) -> str:
    return Path(image.meta["filename_or_obj"]).name


def _like(image: MetaTensor, values: torch.Tensor, **meta: Any) -> MetaTensor:
    """Other values in the place of an image's, with all it knows of itself and more."""
    plain = values.as_tensor() if isinstance(values, MetaTensor) else values
    return MetaTensor(
        plain,
        meta={**image.meta, **meta},
        applied_operations=image.applied_operations,
    )
