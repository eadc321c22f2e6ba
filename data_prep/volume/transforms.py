"""From a file to slices as a MONAI chain of dictionary transforms, to print and to reuse.

    >>> chain = volume_transforms(PrepareConfig(size=64, spacing_mm=3.2))
    >>> [type(step).__name__ for step in chain.transforms]
    ['LoadVerifiedd', 'LoadVerifiedd', 'BrainMaskd', 'Orientationd', 'ScaleWithinMaskd',
     'CheckPlausibilityd', 'ExtractSlicesd']

Keys are "image" and "mask"; values are paths first, then channel-first MetaTensors (1, X, Y, Z) in
RAS mm, and at the end slices (n, 1, H, W) in [0, 1]. What the steps measure of an image is a `Scan`
under "image_scan". MONAI does the reorientation and the scaling; the other steps have no
counterpart there, and can stand in any chain that begins with LoadVerifiedd.
"""

import importlib.util
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
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
from data_prep.config import PrepareConfig
from data_prep.store import NativeVolume
from data_prep.volume.brain import (
    MaskShape,
    brain_of_image,
    brain_of_mask,
    findings,
    mask_shape,
)
from data_prep.volume.plausibility import PlausibilityConfig, doubts, words_of
from data_prep.volume.slices import Slices, checked_slices, voxel_sizes
from data_prep.volume.verify import on_axes_of, read_verified

IMAGE, MASK = "image", "mask"
SLICING = ("size", "spacing_mm", "plane", "slice_spacing_mm", "min_brain_area", "max_slices")
DEFAULTS = PrepareConfig()
# Names of both ends of each axis of RAS, which MONAI would else take from the image.
RAS = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class Scan:
    """What the steps of a chain measure of an image and hand on.

    name, sha256, shape, affine: of its file: voxels along its axes as stored, and (4, 4) float64 to
    RAS mm. flags: what is odd about it though it is usable (plausibility.py).
    intensity: in the brain, what became 0 and 1 as low and high, the mean, and as saturated the
    share of voxels at the largest value. findings: as brain.py has them.
    measured: the mask whose shape was measured, and the shape.
    indices, cropped: as Slices has them.
    """

    name: str
    sha256: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    flags: tuple[str, ...] = ()
    intensity: Mapping[str, float] = field(default_factory=dict)
    findings: Mapping[str, float] = field(default_factory=dict)
    measured: tuple[MetaTensor, MaskShape] | None = None
    indices: tuple[int, ...] = ()
    cropped: bool = False

    @property
    def native(self) -> NativeVolume:
        """The volume as it lay on disk. Only where its intensities were scaled."""
        dx, dy, dz = (float(side) for side in voxel_sizes(self.affine))
        code = "".join(nib.aff2axcodes(self.affine))
        low, high = self.intensity["low"], self.intensity["high"]
        return NativeVolume(self.shape, (dx, dy, dz), code, low, high)


def scan_key(key: Hashable) -> str:
    """Where a chain keeps the Scan of the image under `key`."""
    return f"{key}_scan"


def volume_transforms(config: PrepareConfig) -> Compose:
    """The chain that turns {"image": path, "mask": path or absent} into slices."""
    assumed = config.assume_orientation
    lenient = {"constant_allowed": True, "allow_missing_keys": True}
    return Compose(
        [
            LoadVerifiedd(IMAGE, assume_orientation=assumed),
            LoadVerifiedd(MASK, assume_orientation=assumed, **lenient),
            BrainMaskd(IMAGE, MASK, config.mask_threshold),
            Orientationd([IMAGE, MASK], axcodes="RAS", labels=RAS),
            *([CorrectBiasFieldd(IMAGE, MASK)] if config.n4 else []),
            ScaleWithinMaskd(IMAGE, MASK, config.lower_percentile, config.upper_percentile),
            CheckPlausibilityd(IMAGE, MASK, config.plausibility),
            ExtractSlicesd(IMAGE, MASK, **{key: getattr(config, key) for key in SLICING}),
        ]
    )


def apply(
    chain: Compose, path: Path, mask_path: Path | None, end: int | None = None
) -> tuple[MetaTensor, MetaTensor, Scan]:
    """Image, mask and Scan that the chain, up to step `end`, makes of files.

    Errors come as the steps raised them: MONAI wraps them in a RuntimeError that names the step.

    Raises:
        VolumeError, InputError, MemoryError: of a step.
    """
    paths = {IMAGE: path} if mask_path is None else {IMAGE: path, MASK: mask_path}
    try:
        made = chain(paths, end=end)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, VolumeError | InputError | MemoryError):
                raise cause from None
            cause = cause.__cause__
        raise
    return made[IMAGE], made[MASK], made[scan_key(IMAGE)]


@dataclass(frozen=True)
class Volume:
    """A volume whose axes run to the right, to the front and up.

    data: (X, Y, Z) float32 in [0, 1], exactly 0 outside the brain. mask: (X, Y, Z) bool, the brain.
    affine: (4, 4) float64, voxel indices to RAS mm. scan: what its file is like.
    """

    data: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    scan: Scan

    def slices(self, config: PrepareConfig) -> Slices:
        """The chain's last step: slices of a plane on the pixel grid. Raises VolumeError."""
        shape = mask_shape(self.mask)
        return checked_slices(self.data, shape, self.affine, config, self.scan.name)


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
    image, mask, scan = apply(chain, path, mask_path, end=len(chain) - 1)
    return Volume(_array(image), _array(mask), image.affine.numpy(), scan)


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
    turned = _on_axes_of(path.name, mask.data, mask.affine, shape, affine)
    canonical = nib.apply_orientation(turned, nib.io_orientation(affine))
    return brain_of_mask(canonical, threshold)[0]


def _on_axes_of(
    name: str, mask: np.ndarray, affine: np.ndarray, shape: Sequence[int], there: np.ndarray
) -> np.ndarray:
    """The mask `name` with its axes swapped and flipped to run as its image's; no voxel is moved.

    shape, there: of the image. Raises VolumeError where the mask then has another shape, or lies
    more than 0.01 mm elsewhere.
    """
    turned, place = on_axes_of(mask, affine, there)
    if turned.shape != tuple(shape):
        shapes = ["x".join(map(str, sides)) for sides in (turned.shape, shape)]
        raise VolumeError("mask_shape", f"{name} has the shape {shapes[0]}, its image {shapes[1]}")
    if not np.allclose(place, there, atol=1e-2):
        raise VolumeError("mask_position", f"{name} does not lie where its image does")
    return turned


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
        made = dict(data)
        for key in self.key_iterator(made):
            path = Path(made[key])
            read = read_verified(
                path,
                constant_allowed=self.constant_allowed,
                assume_orientation=self.assume_orientation,
            )
            x, y, z = read.data.shape
            made[scan_key(key)] = Scan(path.name, read.sha256, (x, y, z), read.affine, read.flags)
            meta = {
                "filename_or_obj": str(path),
                "original_affine": read.affine,
                "spatial_shape": np.array(read.data.shape),
            }
            made[key] = MetaTensor(
                torch.from_numpy(read.data)[None], affine=torch.from_numpy(read.affine), meta=meta
            )
        return made


class BrainMaskd(Transform):
    """The brain, bool (1, X, Y, Z), as brain.py finds it: by the mask, or in the image without one.

    Raises VolumeError (mask_shape, mask_position, no_brain) for a mask that does not lie on the
    image's own grid, or is empty.
    """

    def __init__(self, image_key: str, mask_key: str, threshold: float = 0.5) -> None:
        """threshold: least value of brain in a mask of several values."""
        self.image_key, self.mask_key, self.threshold = image_key, mask_key, threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image, given = data[self.image_key], data.get(self.mask_key)
        scan: Scan = data[scan_key(self.image_key)]
        if given is None:
            mask, flags = brain_of_image(_array(image))
        else:
            name, affines = data[scan_key(self.mask_key)].name, (given.affine, image.affine)
            here, there = (affine.numpy() for affine in affines)
            turned = _on_axes_of(name, _array(given), here, image.shape[1:], there)
            mask, flags = brain_of_mask(np.ascontiguousarray(turned), self.threshold)
        if not mask.any():
            raise VolumeError("no_brain", f"{scan.name} has no voxel inside the brain")
        made = MetaTensor(torch.from_numpy(mask)[None], affine=image.affine.clone())
        flagged = replace(scan, flags=(*scan.flags, *flags))
        return {**data, self.mask_key: made, scan_key(self.image_key): flagged}


class _BrainStep(Transform):
    """What a subclass's `step` makes of an image and its Scan, given the brain."""

    def __init__(self, image_key: str, mask_key: str) -> None:
        self.image_key, self.mask_key = image_key, mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        key = scan_key(self.image_key)
        image, scan = self.step(data[self.image_key], data[self.mask_key], data[key])
        return {**data, self.image_key: image, key: scan}

    @abstractmethod
    def step(self, image: MetaTensor, mask: MetaTensor, scan: Scan) -> tuple[MetaTensor, Scan]:
        """Both, changed."""


class CorrectBiasFieldd(_BrainStep):
    """The image divided by its N4 bias field within the mask (needs SimpleITK)."""

    def step(self, image: MetaTensor, mask: MetaTensor, scan: Scan) -> tuple[MetaTensor, Scan]:
        sides = voxel_sizes(image.affine.numpy())
        corrected = torch.from_numpy(n4_corrected(_array(image), _array(mask), sides))[None]
        return _like(image, corrected), scan


class ScaleWithinMaskd(_BrainStep):
    """Percentiles within the mask become 0 and 1, clipped; what lies outside the mask becomes 0.

    MONAI's ScaleIntensityRangePercentiles takes them over the whole image, most of which is
    background. The Scan gets the brain's intensity. Raises VolumeError (no_contrast).
    """

    def __init__(self, image_key: str, mask_key: str, lower: float, upper: float) -> None:
        """lower, upper: percentiles, 0 to 100."""
        super().__init__(image_key, mask_key)
        self.lower, self.upper = lower, upper

    def step(self, image: MetaTensor, mask: MetaTensor, scan: Scan) -> tuple[MetaTensor, Scan]:
        kept = _array(image)[_array(mask)].astype(np.float64)
        low, high = np.percentile(kept, [self.lower, self.upper]).tolist()
        if not high > low:
            raise VolumeError(
                "no_contrast", f"{scan.name} has one intensity, {low:g}, all over the brain"
            )
        scaled = torch.as_tensor(ScaleIntensityRange(low, high)(image.as_tensor())).clamp_(0, 1)
        intensity = {
            "low": low,
            "high": high,
            "mean": float(kept.mean()),
            "saturated": np.count_nonzero(kept == kept.max()) / len(kept),
        }
        return _like(image, scaled.mul_(mask.as_tensor())), replace(scan, intensity=intensity)


class CheckPlausibilityd(_BrainStep):
    """Is this the brain of an adult, as plausibility.py expects it.

    The Scan gets findings, and a flag for each that is not as expected. Raises VolumeError
    (implausible) for these where the configuration puts them into quarantine.
    """

    def __init__(
        self, image_key: str, mask_key: str, config: PlausibilityConfig = DEFAULTS.plausibility
    ) -> None:
        super().__init__(image_key, mask_key)
        self.config = config

    def step(self, image: MetaTensor, mask: MetaTensor, scan: Scan) -> tuple[MetaTensor, Scan]:
        shape = mask_shape(_array(mask))
        numbers = findings(shape, mask.affine.numpy(), scan.affine, scan.intensity)
        flags = doubts(numbers, self.config)
        if flags and self.config.action == "quarantine":
            raise VolumeError("implausible", f"{scan.name}: {'; '.join(map(words_of, flags))}")
        scan = replace(scan, findings=numbers, flags=(*scan.flags, *flags), measured=(mask, shape))
        return image, scan


class ExtractSlicesd(_BrainStep):
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
        **rest: Any,
    ) -> None:
        """As the keys of the `prepare` section of these names; rest: others of SLICING, whose
        defaults are those of the section."""
        super().__init__(image_key, mask_key)
        unknown = set(rest) - set(SLICING)
        if unknown:
            raise TypeError(f"ExtractSlicesd has no {' or '.join(sorted(unknown))}")
        self.config = PrepareConfig(size=size, spacing_mm=spacing_mm, **rest)

    def step(self, image: MetaTensor, mask: MetaTensor, scan: Scan) -> tuple[MetaTensor, Scan]:
        known = scan.measured and scan.measured[0] is mask
        shape = scan.measured[1] if scan.measured and known else mask_shape(_array(mask))
        affine = image.affine.numpy()
        cut = checked_slices(_array(image), shape, affine, self.config, scan.name)
        meta = {**image.meta, "affine": torch.from_numpy(cut.affine)}
        flags = (*scan.flags, *cut.flags)
        scan = replace(scan, flags=flags, indices=cut.indices, cropped=cut.cropped)
        return MetaTensor(torch.from_numpy(cut.images), meta=meta), scan


def _array(image: MetaTensor) -> np.ndarray:
    """The values (X, Y, Z) of a single channel, without a copy."""
    return image.as_tensor()[0].numpy()


def _like(image: MetaTensor, values: torch.Tensor) -> MetaTensor:
    """Other values in the place of an image's, with all that MONAI knows of it."""
    return MetaTensor(values, meta=dict(image.meta), applied_operations=image.applied_operations)


def require_n4() -> None:
    """Raise InputError where the optional package that does N4 is not installed."""
    if importlib.util.find_spec("SimpleITK") is None:
        raise InputError(
            "prepare.n4 needs the package SimpleITK: install the extra 'n4' or set prepare.n4 false"
        )


def n4_corrected(data: np.ndarray, mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The volume divided by its N4 bias field (Tustison 2010, doi 10.1109/TMI.2010.2046908).

    data (X, Y, Z) float32, mask (X, Y, Z) bool, spacing (3,) mm -> (X, Y, Z) float32. The field is
    smooth, so it is fitted on voxels of about 4 mm and evaluated on all.
    """
    require_n4()
    import SimpleITK as sitk

    def image_of(array: np.ndarray) -> "sitk.Image":
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        image.SetSpacing([float(s) for s in spacing])
        return image

    # N4 works on logarithms: what is not above zero cannot take part.
    whole, inside = image_of(data), image_of((mask & (data > 0)).astype(np.uint8))
    factors = [max(1, min(round(4 / s), n // 8)) for s, n in zip(spacing, data.shape, strict=True)]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(sitk.Shrink(whole, factors), sitk.Shrink(inside, factors))
    field = sitk.GetArrayFromImage(sitk.Exp(n4.GetLogBiasFieldAsImage(whole)))
    return (data / np.maximum(field.transpose(2, 1, 0), 1e-3)).astype(np.float32)
