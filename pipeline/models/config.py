"""The `model` and `prior` sections of the configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from data_prep.common.errors import require

SIDES = (32, 64, 128, 256)
# The encoder's last feature map before a level of side 1.
LAST_SIDE = 4
# Groups of a level, residual blocks of a side: more is a typing error, or a file meant to fill the
# memory.
MOST_DRAWS = 64


@dataclass(frozen=True)
class Level:
    """The latents of one side: `groups` draws of (channels, side, side), one after the other.

    Example:
        >>> Level(side=8, channels=4, groups=2).shape
        (4, 8, 8)
    """

    side: int
    """Pixels: 1 for a vector, or a power of two from 4 to half the image's side."""
    channels: int
    """Numbers at each pixel of a draw."""
    groups: int = 1
    """Draws at this side, each given those before it."""
    opens: float = 0.0
    """Share of the run after which the level is used: until then its latents are 0, the prior's
    mean, and cost nothing. Opened from coarse to fine, the coarse levels learn anatomy."""

    def __post_init__(self) -> None:
        if self.side != 1 and (self.side < LAST_SIDE or self.side & (self.side - 1)):
            raise ValueError(f"a side in model.levels must be 1, 4, 8, 16, …, not {self.side}")
        require("model.levels", self, ">= 1", "channels")
        require("model.levels", self, f">= 1, <= {MOST_DRAWS}", "groups")
        require("model.levels", self, ">= 0, < 1", "opens")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, side, side) of one draw."""
        return self.channels, self.side, self.side


@dataclass(frozen=True)
class ModelConfig:
    """Shape and size of the VAE; the image's side and channels come from the store.

    Example:
        >>> ModelConfig(levels=[Level(4, 16), Level(8, 8)]).latent_size
        768
    """

    levels: list[Level] = field(
        default_factory=lambda: [Level(4, 16), Level(8, 8), Level(16, 4), Level(32, 2)]
    )
    """Latents from coarse to fine. One level is a flat VAE: {side: 1, channels: L} a vector,
    {side: 8, channels: c} a grid."""
    width: int = 24
    """Channels at half the image's side; they double with every halving, up to `max_width`."""
    max_width: int = 96
    """Most channels of any feature map."""
    residual_blocks: int = 1
    """Residual blocks at every side of the encoder, and in the decoder after every draw."""
    kernel_hidden: int = 128
    """Hidden units of the kernel network."""

    def __post_init__(self) -> None:
        # A run's file and a package's metadata hold levels as mappings.
        try:
            levels = [v if isinstance(v, Level) else Level(**v) for v in self.levels]
        except TypeError as error:
            raise ValueError(
                f"model.levels holds side, channels, groups, opens: {error}"
            ) from error
        object.__setattr__(self, "levels", levels)
        sides = [level.side for level in self.levels]
        if not sides or sides != sorted(set(sides)):
            raise ValueError(f"model.levels must go from coarse to fine, not by sides {sides}")
        opens = [level.opens for level in self.levels]
        if opens[0] != 0 or opens != sorted(opens):
            raise ValueError(
                f"model.levels must open from coarse to fine, the first at 0, not at {opens}"
            )
        require("model", self, ">= 1", "width", "max_width", "kernel_hidden")
        require("model", self, f">= 0, <= {MOST_DRAWS}", "residual_blocks")
        if self.width % 4:
            raise ValueError(f"model.width must be a multiple of 4, not {self.width}")

    @property
    def draws(self) -> list[Level]:
        """The level of every draw, from coarse to fine."""
        return [level for level in self.levels for _ in range(level.groups)]

    @property
    def latent_size(self) -> int:
        """L: how many numbers a latent has."""
        return sum(level.channels * level.side**2 for level in self.draws)

    def sides(self, side: int) -> list[int]:
        """Sides of the feature maps of images of `side`, from fine to coarse.

        Half the image's side, a quarter, … down to the coarsest level's; from 4 straight to 1.
        Raises ValueError where the levels do not fit.
        """
        if side not in SIDES:
            raise ValueError(f"image side must be one of {SIDES}, not {side}")
        finest, coarsest = self.levels[-1].side, self.levels[0].side
        if finest > side // 2:
            raise ValueError(
                f"model.levels has a side of {finest}: for images of {side}² the finest is "
                f"{side // 2}"
            )
        sides = [side // 2]
        while sides[-1] > max(coarsest, LAST_SIDE):
            sides.append(sides[-1] // 2)
        return sides if coarsest > 1 else [*sides, 1]

    def channels_at(self, side: int, image_side: int) -> int:
        """Channels of the feature maps of a side."""
        return min(self.width * (image_side // 2 // side), self.max_width)


def describe_levels(levels: Sequence[Level]) -> str:
    """4²×16, 8²×8 (2 draws): for tables and messages."""
    return ", ".join(
        f"{level.side}²×{level.channels}" + (f" ({level.groups} draws)" if level.groups > 1 else "")
        for level in levels
    )


@dataclass(frozen=True)
class PriorConfig:
    """The `prior` section of the configuration: what samples are drawn from."""

    pieces: int = 128
    """Groups of similar training slices; 0 = none, samples then come from N(0,I)."""
    subjects: int = 5
    """Slices a group, each of another subject: few give sharp samples, many give new ones."""
    images: int = 8000
    """Training images among which similar ones are searched: each training slice several times,
    with another deformation."""
    augmentation: float = 0.5
    """Share of data.augmentation under which they are taken: samples need not be as bent and tilted
    as what the networks are trained on."""
    seed: int = 0
    """Of the groups, their images and deformations."""

    def __post_init__(self) -> None:
        require("prior", self, ">= 0", "pieces", "seed")
        require("prior", self, ">= 2", "subjects", "images")
        require("prior", self, ">= 0, <= 1", "augmentation")
