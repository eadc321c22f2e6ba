"""The `data` section of the configuration."""

from dataclasses import dataclass, field
from typing import Literal


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
        for name in ("rotation_degrees", "scale", "translation", "shear", "elastic", "gamma"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.augmentation.{name} must not be negative")
        if not 0 <= self.gain < 1:
            raise ValueError(f"data.augmentation.gain must be in [0, 1), not {self.gain}")
        if not 0 <= self.scale < 1:
            raise ValueError(f"data.augmentation.scale must be in [0, 1), not {self.scale}")
        if self.elastic_points < 4:
            raise ValueError("data.augmentation.elastic_points must be at least 4")


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
        if self.workers < 0:
            raise ValueError(f"data.workers must not be negative: {self.workers}")
