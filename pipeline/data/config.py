"""The `data` section of the configuration."""

from dataclasses import dataclass, field
from typing import Literal

from data_prep.common.errors import require


@dataclass(frozen=True)
class AugmentationConfig:
    """The `data.augmentation` section. Lengths are fractions of the image's side."""

    enabled: bool = True
    """Whether training slices are changed at random, mirrored (data.flip) included."""
    rotation_degrees: float = 10.0
    """Largest rotation either way."""
    scale: float = 0.1
    """Largest relative change of size, drawn for each axis."""
    translation: float = 0.03
    """Largest shift along each axis."""
    shear: float = 0.05
    """Largest shear either way."""
    elastic: float = 0.02
    """Standard deviation of a smooth displacement on a coarse grid of `elastic_points`²."""
    elastic_points: int = 6
    """Points of that grid along each axis."""
    gamma: float = 0.2
    """Largest |log γ| of the contrast x^γ."""
    gain: float = 0.1
    """Largest relative change of brightness."""

    def __post_init__(self) -> None:
        section = "data.augmentation"
        require(section, self, ">= 0", "rotation_degrees", "translation", "shear")
        require(section, self, ">= 0", "elastic", "gamma")
        require(section, self, ">= 0, < 1", "scale", "gain")
        require(section, self, ">= 4", "elastic_points")


@dataclass(frozen=True)
class DataConfig:
    """The `data` section."""

    store: str = field(default="", metadata={"where": True})
    """Name of a prepared store under WORK/stores, or a path; "" = prepare.name."""
    flip: bool = True
    """Mirror left and right in augmentation; never done to sagittal slices."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    workers: int = field(default=0, metadata={"decides": "nothing"})
    """Processes that read slices ahead; 0 = read in the training process."""
    on_device: Literal["auto", "always", "never"] = field(
        default="auto", metadata={"decides": "nothing"}
    )
    """Whether training slices are kept in the device's memory; auto: on a GPU where they fit."""

    def __post_init__(self) -> None:
        require("data", self, ">= 0", "workers")
