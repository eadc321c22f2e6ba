"""From a file to slices as a MONAI chain of dictionary transforms, to print and to reuse.

    >>> chain = volume_transforms(PrepareConfig(size=64, spacing_mm=3.2))
    >>> [type(step).__name__ for step in chain.transforms]
    ['LoadVerifiedd', 'LoadVerifiedd', 'BrainMaskd', 'Orientationd', 'ScaleWithinMaskd',
     'CheckPlausibilityd', 'ExtractSlicesd']

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

from data_prep.common.errors import InputError, VolumeError
from data_prep.config import Plane, PrepareConfig
from data_prep.flags import words_of
from data_prep.volume.bias_field import n4_corrected
from data_prep.volume.brain import brain_of_image, brain_of_mask
from data_prep.volume.findings import findings
from data_prep.volume.mask_shape import MaskShape, mask_shape
from data_prep.volume.plausibility import PlausibilityConfig, doubts
from data_prep.volume.slices import check_grid, cut_checked, voxel_sizes
from data_prep.volume.verify import read_verified

IMAGE, MASK = "image", "mask"
PLAUSIBLE = PlausibilityConfig()
# Names of both ends of each axis of RAS, which MONAI would else take from the image.
RAS = (("L", "R"), ("P", "A"), ("I", "S"))


def volume_transforms(config: PrepareConfig) -> Compose:
    """The chain that turns {"image": path, "mask": path or absent} into slices."""
    n4 = [CorrectBiasFieldd(IMAGE, MASK)] if config.n4 else []
    return Compose(
        [
            LoadVerifiedd(IMAGE, assume_orientation=config.assume_orientation),
            LoadVerifiedd(
                MASK,
                assume_orientation=config.assume_orientation,
                constant_allowed=True,
                allow_missing_keys=True,
            ),
            BrainMaskd(IMAGE, MASK, config.mask_threshold),
            Orientationd([IMAGE, MASK], axcodes="RAS", labels=RAS),
            *n4,
            ScaleWithinMaskd(IMAGE, MASK, config.lower_percentile, config.upper_percentile),
            CheckPlausibilityd(IMAGE, MASK, config.plausibility),
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
    filename_or_obj, sha256, flags, lowest, original_affine and spatial_shape. Raises VolumeError.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        assume_orientation: str = "",
        constant_allowed: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        """assume_orientation, constant_allowed: as read_verified has them."""
        super().__init__(keys, allow_missing_keys)
        self.assume_orientation, self.constant_allowed = assume_orientation, constant_allowed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            path = Path(found[key])
            read = read_verified(
                path,
                constant_allowed=self.constant_allowed,
                assume_orientation=self.assume_orientation,
            )
            meta = {
                "filename_or_obj": str(path),
                "sha256": read.sha256,
                "flags": read.flags,
                "lowest": read.lowest,
                "original_affine": read.affine,
                "spatial_shape": np.array(read.data.shape),
            }
            found[key] = MetaTensor(
                torch.from_numpy(read.data)[None], affine=torch.from_numpy(read.affine), meta=meta
            )
        return found


class BrainMaskd(Transform):
    """The brain, bool (1, X, Y, Z), as brain.py finds it: by the mask, or in the image without one.

    Raises VolumeError (mask_shape, mask_position, no_brain) for a mask that does not lie on the
    image's own grid, or is empty.
    """

    def __init__(self, image_key: str, mask_key: str, threshold: float = 0.5) -> None:
        """threshold: least value of brain in a mask of several values."""
        self.image_key, self.mask_key, self.threshold = image_key, mask_key, threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        image, given = found[self.image_key], found.get(self.mask_key)
        if given is None:
            mask, flags = brain_of_image(image.as_tensor()[0], image.meta["lowest"])
        else:
            check_grid(
                given.shape[1:], given.affine.numpy(), image.shape[1:], image.affine.numpy(),
                _name(given),
            )  # fmt: skip
            mask, flags = brain_of_mask(given.as_tensor()[0], self.threshold)
        if not mask.any():
            raise VolumeError("no_brain", f"{_name(image)} has no voxel inside the brain")
        found[self.mask_key] = MetaTensor(mask[None], affine=image.affine.clone())
        if flags:
            found[self.image_key] = _like(image, image, flags=(*image.meta["flags"], *flags))
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
    background. `meta` gets intensity_range, what became 0 and 1, and of the brain the mean and the
    share of voxels at its largest value, as `mean` and `saturated`. Raises VolumeError
    (no_contrast).
    """

    def __init__(self, image_key: str, mask_key: str, lower: float, upper: float) -> None:
        """lower, upper: percentiles, 0 to 100."""
        self.image_key, self.mask_key = image_key, mask_key
        self.lower, self.upper = lower, upper

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        image, mask = found[self.image_key], found[self.mask_key]
        values, inside = _along_memory(image), _along_memory(mask, image)
        kept = values.numpy()[inside.numpy()]
        low, high = _percentiles(kept, [self.lower, self.upper])
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
        found[self.image_key] = _like(
            image,
            scaled,
            intensity_range=(low, high),
            mean=float(kept.mean(dtype=np.float64)),
            saturated=_share_of_largest(kept, int((len(kept) - 1) * self.upper / 100)),
        )
        return found


class CheckPlausibilityd(Transform):
    """Is this the brain of an adult, as plausibility.py expects it.

    `meta` gets findings, and a flag for each that is not as expected. Raises VolumeError
    (implausible) for these where the configuration puts them into quarantine.
    """

    def __init__(
        self, image_key: str, mask_key: str, config: PlausibilityConfig = PLAUSIBLE
    ) -> None:
        self.image_key, self.mask_key, self.config = image_key, mask_key, config

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        image, meta = found[self.image_key], found[self.image_key].meta
        low, high = meta["intensity_range"]
        intensity = {"low": low, "high": high, "mean": meta["mean"], "saturated": meta["saturated"]}
        shape, affine = _shape_of(found[self.mask_key]), image.affine.numpy()
        measured = findings(shape, affine, meta["original_affine"], intensity)
        flags = doubts(measured, self.config)
        if flags and self.config.action == "quarantine":
            raise VolumeError("implausible", f"{_name(image)}: {'; '.join(map(words_of, flags))}")
        found[self.image_key] = _like(
            image, image, findings=measured, flags=(*meta["flags"], *flags)
        )
        return found


DEFAULTS = PrepareConfig()


class ExtractSlicesd(Transform):
    """Native slices of a plane on a square pixel grid of known size in mm, centred on the brain.

    The image becomes a MetaTensor (n, 1, H, W) whose affine maps (row, column, slice number, 1) to
    RAS mm; `meta` gets slice_indices and cropped, whether part of the brain lies outside the grid.
    The volume must be in RAS (Orientationd). Raises VolumeError (too_small, black).
    """

    def __init__(
        self,
        image_key: str,
        mask_key: str,
        *,
        size: int,
        spacing_mm: float,
        plane: Plane = DEFAULTS.plane,
        slice_spacing_mm: float = DEFAULTS.slice_spacing_mm,
        min_brain_area: float = DEFAULTS.min_brain_area,
        max_slices: int = DEFAULTS.max_slices,
    ) -> None:
        """As the keys of the `prepare` section of these names, with their defaults."""
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
        cut = cut_checked(
            _array(image), image.affine.numpy(), _shape_of(mask), self.config, _name(image)
        )
        found[self.image_key] = MetaTensor(
            torch.from_numpy(cut.images),
            meta={
                **image.meta,
                "affine": torch.from_numpy(cut.affine),
                "slice_indices": cut.indices,
                "cropped": cut.cropped,
                "flags": (*image.meta["flags"], *cut.flags),
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


def _share_of_largest(values: np.ndarray, place: int) -> float:
    """The share of `values` (n,) that are as large as the largest. place: where it is parted."""
    largest = values[place:].max()
    beyond = values[place:] if values[place] < largest else values
    return np.count_nonzero(beyond == largest) / len(values)


def _shape_of(mask: MetaTensor) -> MaskShape:
    """The shape of a mask, measured once as long as nothing is done to it."""
    # The tensor is kept, so that no other one can come to lie in its place.
    kept, version, shape = mask.meta.get("shape", (None, None, None))
    if kept is None or version != mask._version or kept.data_ptr() != mask.data_ptr() or (
        (kept.stride(), kept.shape) != (mask.stride(), mask.shape)
    ):  # fmt: skip
        shape = mask_shape(_array(mask))
        mask.meta["shape"] = (mask.as_tensor(), mask._version, shape)
    return shape


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
