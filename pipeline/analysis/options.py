"""The options of the analyses.

Nothing here imports torch: options and paths that are wrong are told at once.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from data_prep import Store, StoreError
from data_prep.common.wording import command
from pipeline.errors import InputError
from pipeline.files import existing_package, find_folder, is_address


@dataclass(frozen=True)
class PackageOptions:
    """A decoder, and a place for what it is used for."""

    package: str = ""
    """Decoder package: a folder, a name under WORK/packages, or an address in MLflow."""
    law: Literal["best", "fitted", "term"] = "best"
    """The law of the decoder's residuals: fitted, term, or best: fitted where there is one."""
    output: str = ""
    """Folder of the results; "" = one under WORK, named by what decides them."""

    def __post_init__(self) -> None:
        if not self.package:
            export = command("export", run="…")
            raise ValueError(f"no decoder given: use --package DIR ({export} writes one)")
        for name, value in asdict(self).items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            least = 1 if name in ("coils", "factor", "repeats") else 0
            if number and not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} must be at least {least}, not {value}")


@dataclass(frozen=True)
class StoreOptions(PackageOptions):
    """Subjects of a prepared store."""

    store: str = ""
    """A prepared store."""
    subjects: str = "test"
    """Its subjects: those of split test or validation, all, or one subject by name."""
    other_people: bool = False
    """The store's subjects are others than those trained on, whatever their names: the same file
    alone is refused."""
    slices: int = 4
    """Slices per subject, evenly spaced about the middle; 0 = all."""
    seed: int = 0
    """Of all that is drawn at random."""


@dataclass(frozen=True)
class ReconstructOptions(StoreOptions):
    """Images, how they are or were measured, and how they are searched for."""

    image: str = ""
    """A NIfTI file of one slice, in place of a store: undersampled here and scored, or with
    --operator image degraded already."""
    kspace: str = ""
    """A .npy file of measured k-space, complex (H,W) or (coils,H,W), centred, rows A>P."""
    like: str = ""
    """NIfTI file of one slice whose affine and axes the picture of --kspace has."""
    scale: float = 0.0
    """Of a single slice: the value that is intensity 1; 0 = the 99.5th percentile in the head."""
    operator: Literal["fourier", "image"] = "fourier"
    """fourier: undersampled k-space; image: blur, then coarser pixels. Noise is added to either."""
    acceleration: float = 4.0
    """All columns of k-space over those measured, 2 to 8."""
    kind: Literal["variable_density", "equispaced"] = "variable_density"
    """The columns: at random, denser in the centre, or equally spaced."""
    centre_fraction: float = 0.08
    """The share of columns about the lowest frequency that are all measured."""
    mask: str = ""
    """The samples, (H,W) of 0 and 1, .npy or NIfTI, in place of drawn columns; of --kspace "" is
    where it is not 0."""
    coils: int = 1
    """Coils that are simulated where no sensitivities are given."""
    sensitivities: str = ""
    """A .npy file of coil sensitivities, complex (coils,H,W), which several measured coils need."""
    phase: Literal["centre", "none"] = "centre"
    """The image's phase: from the fully sampled centre, or none."""
    simulated_phase: float = 0.0
    """The largest phase, radians, that the object of --store or --image gets, smoothly."""
    blur: float = 0.0
    """Of --operator image: standard deviation of the Gaussian, pixels of the restored image."""
    factor: int = 1
    """Of --operator image: pixels of the restored image that one measured spans, a side."""
    noise: float | None = None
    """Standard deviation of the noise, in intensities of [0,1]; null = 0.01 in real and imaginary
    part of k-space, 0.1 in an image."""
    tv_weight: float | None = None
    """Weight of total variation; null = the best SSIM on validation subjects, for a single slice
    the choice on OASIS."""
    wavelet_weight: float | None = None
    """Weight of the wavelets' details, chosen in the same way."""
    steps: int = 80
    """Steps of the latent phase; the image phase has three for four of these."""
    samples: int = 8
    """Draws from the posterior, for a standard deviation of each pixel; 0 = none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(map(bool, (self.store, self.image, self.kspace))) != 1:
            raise ValueError("give one of --store, --image and --kspace")
        if self.kspace and self.operator == "image":
            raise ValueError("--kspace is reconstructed with --operator fourier")
        if self.kspace and not self.like:
            raise ValueError(
                "k-space has no affine: give --like x.nii.gz, a slice of the same place"
            )
        if not 2 <= self.acceleration <= 8:
            raise ValueError(f"acceleration must lie between 2 and 8, not {self.acceleration:g}")
        if self.samples == 1:
            raise ValueError("one draw has no standard deviation: give samples 0, or at least 2")

    @property
    def deviation(self) -> float:
        """Of the noise, intensity."""
        default = 0.1 if self.operator == "image" else 0.01
        return default if self.noise is None else self.noise


@dataclass(frozen=True)
class AnomalyOptions(PackageOptions):
    """A volume, and how it is compared with what the decoder expects."""

    image: str = ""
    """The volume, .nii or .nii.gz, skull-stripped or with a mask."""
    mask: str = ""
    """Brain mask on the image's grid; "" = where the image is above 0."""
    assume_orientation: str = ""
    """Where the axes of a file run to whose header does not say (sform and qform codes 0, Analyze),
    such as RAS or LAS; "" = such a file is refused."""
    lesions: str = ""
    """Mask of lesions on the image's grid, to score the maps against."""
    baseline: str = ""
    """Another decoder package, as of a Gaussian VAE, whose |x − x̂| is scored, too."""
    finest: int = 0
    """Side of the finest level whose latents the reconstructions use; 0 = all. Finer levels draw a
    lesion as they draw anatomy."""
    tail: Literal["both", "dark", "bright"] = "both"
    """The deviations that count: both, only dark, or only bright ones."""
    restore_steps: int = 0
    """Steps of gradient ascent on the posterior, 100 or so; with them the map is what the
    restoration changed."""
    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.image:
            raise ValueError("no volume given: use --image volume.nii.gz")


@dataclass(frozen=True)
class LesionsOptions(StoreOptions):
    """Lesions that are put into a store's healthy slices, and how they are looked for."""

    slices: int = 8
    """Slices per subject, evenly spaced about the middle; 0 = all."""
    diameters: tuple[float, ...] = (3.0, 6.0, 9.0, 12.0)
    """Of the lesions, mm."""
    contrasts: tuple[float, ...] = (-0.4, -0.2, 0.2, 0.4)
    """Of the lesions, in intensities of [0,1]; negative ones are dark."""
    repeats: int = 2
    """Lesions of each kind in each slice, one at a time."""
    false_positives: float = 1.0
    """Pieces per healthy slice that the threshold of the sensitivity leaves."""
    baseline: str = ""
    """Another decoder package, as of a Gaussian VAE, whose |x − x̂| is scored, too."""
    finest: int = 0
    """Side of the finest level whose latents the reconstructions use; 0 = all. Finer levels draw a
    lesion as they draw anatomy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.store:
            raise ValueError("no subjects given: use --store STORE")
        if not self.false_positives > 0:
            raise ValueError(f"false_positives must be positive, not {self.false_positives}")
        if not self.diameters or not all(0 < d < math.inf for d in self.diameters):
            raise ValueError(f"diameters must be lengths in mm, not {list(self.diameters)}")
        if not self.contrasts or not all(0 < abs(c) <= 1 for c in self.contrasts):
            raise ValueError(f"contrasts must lie in [-1,1] and not be 0: {list(self.contrasts)}")


def check_there(options: PackageOptions, *files: str) -> None:
    """Raise InputError for a package, store or file that is named and is not there.

    files: names of options.
    """
    for name in files:
        path = getattr(options, name)
        if path and not Path(path).exists():
            raise InputError(f"--{name}: {path} is not there")
    for source in (options.package, getattr(options, "baseline", "")):
        if source and not is_address(source):
            existing_package(find_folder(source, "packages"))
    if store := getattr(options, "store", ""):
        try:
            Store.open(find_folder(store, "stores"))
        except StoreError as error:
            raise InputError(str(error)) from error
