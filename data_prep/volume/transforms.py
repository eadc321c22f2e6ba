"""From a file to slices as a MONAI chain of dictionary transforms, to print and to reuse.

    >>> chain = volume_transforms(PrepareConfig(size=64, spacing_mm=3.2))
    >>> [type(step).__name__ for step in chain.transforms]
    ['LoadVerifiedd', 'LoadVerifiedd', 'BrainMaskd', 'Orientationd', 'ScaleWithinMaskd',
     'CheckPlausibilityd', 'ExtractSlicesd']

Keys are "image" and "mask"; values are paths first, then channel-first MetaTensors (1, X, Y, Z) in
RAS mm, and at the end slices (n, 1, H, W) in [0, 1]. What the steps find of an image is a `Scan`
under "image_scan". MONAI does the reorientation and the scaling; the other steps have no
counterpart there, and can stand in any chain that begins with LoadVerifiedd.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
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
from data_prep.volume.findings import MaskShape, findings, mask_shape
from data_prep.volume.plausibility import PlausibilityConfig, doubts
from data_prep.volume.slices import check_grid, cut_checked, voxel_sizes
from data_prep.volume.verify import read_verified

IMAGE, MASK = "image", "mask"
PLAUSIBLE = PlausibilityConfig()
# Names of both ends of each axis of RAS, which MONAI would else take from the image.
RAS = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class Scan:
    """What the steps of a chain find of an image and hand on.

    name, sha256, shape, affine: of its file: voxels along its axes as stored, and (4, 4) float64 to
    RAS mm. flags: what is odd about it though it is usable (flags.py).
    intensity: in the brain, what became 0 and 1 as low and high, the mean, and as saturated the
    share of voxels at the largest value. findings: as findings.py has them.
    brain: the mask whose shape was measured, and its shape.
    indices, cropped: as Slices has them.
    """

    name: str
    sha256: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    flags: tuple[str, ...] = ()
    intensity: Mapping[str, float] = field(default_factory=dict)
    findings: Mapping[str, float] = field(default_factory=dict)
    brain: tuple[MetaTensor, MaskShape] | None = None
    indices: tuple[int, ...] = ()
    cropped: bool = False


def scan_key(key: Hashable) -> str:
    """Where a chain keeps the Scan of the image under `key`."""
    return f"{key}_scan"


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

    MONAI's LoadImaged reads a damaged file as if nothing were wrong with it. `meta` has what its
    writers look for, the Scan beside the image all else. Raises VolumeError.
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
                "original_affine": read.affine,
                "spatial_shape": np.array(read.data.shape),
            }
            x, y, z = read.data.shape
            found[scan_key(key)] = Scan(path.name, read.sha256, (x, y, z), read.affine, read.flags)
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
        scan: Scan = found[scan_key(self.image_key)]
        if given is None:
            mask, flags = brain_of_image(image.as_tensor()[0])
        else:
            name = found[scan_key(self.mask_key)].name
            affines = given.affine.numpy(), image.affine.numpy()
            check_grid(given.shape[1:], affines[0], image.shape[1:], affines[1], name)
            mask, flags = brain_of_mask(given.as_tensor()[0], self.threshold)
        if not mask.any():
            raise VolumeError("no_brain", f"{scan.name} has no voxel inside the brain")
        found[self.mask_key] = MetaTensor(mask[None], affine=image.affine.clone())
        found[scan_key(self.image_key)] = replace(scan, flags=(*scan.flags, *flags))
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
    background. The Scan gets the brain's intensity. Raises VolumeError (no_contrast).
    """

    def __init__(self, image_key: str, mask_key: str, lower: float, upper: float) -> None:
        """lower, upper: percentiles, 0 to 100."""
        self.image_key, self.mask_key = image_key, mask_key
        self.lower, self.upper = lower, upper

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        image, mask = found[self.image_key], found[self.mask_key]
        scan: Scan = found[scan_key(self.image_key)]
        values, inside = _along_memory(image), _along_memory(mask, image)
        kept = values.numpy()[inside.numpy()].astype(np.float64)
        low, high = np.percentile(kept, [self.lower, self.upper]).tolist()
        if not high > low:
            raise VolumeError(
                "no_contrast", f"{scan.name} has one intensity, {low:g}, all over the brain"
            )
        scaled = torch.empty_like(image.as_tensor())
        scale = ScaleIntensityRange(low, high)
        # A few planes at a time: what fits into a processor's cache takes a quarter of the time.
        parts = [part.split(2) for part in (_along_memory(scaled, image), values, inside)]
        for out, part, brain in zip(*parts, strict=True):
            torch.mul(torch.as_tensor(scale(part)).clamp_(0, 1), brain, out=out)
        found[self.image_key] = _like(image, scaled)
        intensity = {
            "low": low,
            "high": high,
            "mean": float(kept.mean()),
            "saturated": np.count_nonzero(kept == kept.max()) / len(kept),
        }
        found[scan_key(self.image_key)] = replace(scan, intensity=intensity)
        return found


class CheckPlausibilityd(Transform):
    """Is this the brain of an adult, as plausibility.py expects it.

    The Scan gets findings, and a flag for each that is not as expected. Raises VolumeError
    (implausible) for these where the configuration puts them into quarantine.
    """

    def __init__(
        self, image_key: str, mask_key: str, config: PlausibilityConfig = PLAUSIBLE
    ) -> None:
        self.image_key, self.mask_key, self.config = image_key, mask_key, config

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        mask, scan = found[self.mask_key], found[scan_key(self.image_key)]
        shape = mask_shape(_array(mask))
        measured = findings(shape, mask.affine.numpy(), scan.affine, scan.intensity)
        flags = doubts(measured, self.config)
        if flags and self.config.action == "quarantine":
            raise VolumeError("implausible", f"{scan.name}: {'; '.join(map(words_of, flags))}")
        found[scan_key(self.image_key)] = replace(
            scan, findings=measured, flags=(*scan.flags, *flags), brain=(mask, shape)
        )
        return found


DEFAULTS = PrepareConfig()


class ExtractSlicesd(Transform):
    """Native slices of a plane on a square pixel grid of known size in mm, centred on the brain.

    The image becomes a MetaTensor (n, 1, H, W) whose affine maps (row, column, slice number, 1) to
    RAS mm; the Scan gets indices and cropped. The volume must be in RAS (Orientationd). Raises
    VolumeError (too_small, black).
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
        scan: Scan = found[scan_key(self.image_key)]
        known = scan.brain is not None and scan.brain[0] is mask
        shape = scan.brain[1] if scan.brain and known else mask_shape(_array(mask))
        cut = cut_checked(_array(image), image.affine.numpy(), shape, self.config, scan.name)
        affine = torch.from_numpy(cut.affine)
        found[self.image_key] = MetaTensor(
            torch.from_numpy(cut.images), meta={**image.meta, "affine": affine}
        )
        found[scan_key(self.image_key)] = replace(
            scan, flags=(*scan.flags, *cut.flags), indices=cut.indices, cropped=cut.cropped
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


def _like(image: MetaTensor, values: torch.Tensor) -> MetaTensor:
    """Other values in the place of an image's, with all that MONAI knows of it."""
    plain = values.as_tensor() if isinstance(values, MetaTensor) else values
    return MetaTensor(plain, meta=dict(image.meta), applied_operations=image.applied_operations)
