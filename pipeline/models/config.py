"""The `model` section of the configuration."""

from dataclasses import dataclass, field

SIDES = (32, 64, 128, 256)


@dataclass(frozen=True)
class ModelConfig:
    """Shape and size of the VAE; the image's side and channels come from the store."""

    latent: list[int] = field(default_factory=lambda: [16, 8, 8])
    """[L] for a vector, [c, h, w] for a spatial latent (h = w, a power of two from 4)."""
    width: int = 24
    """Channels at half the image's side; they double with every halving, up to `max_width`."""
    max_width: int = 192
    residual_blocks: int = 0
    """Residual blocks at every level from a quarter of the image's side down."""
    kernel_hidden: int = 128
    """Hidden units of the kernel network."""

    def __post_init__(self) -> None:
        if len(self.latent) not in (1, 3) or min(self.latent) < 1:
            raise ValueError(f"model.latent must be [L] or [c, h, w], not {self.latent}")
        if len(self.latent) == 3:
            side = self.latent[1]
            if side != self.latent[2] or side < 4 or side & (side - 1):
                raise ValueError(
                    f"model.latent must be square with a side of 4, 8, 16, …, not {self.latent}"
                )
        for name in ("width", "max_width", "kernel_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        if self.width % 4:
            raise ValueError(f"model.width must be a multiple of 4, not {self.width}")
        if self.residual_blocks < 0:
            raise ValueError(f"model.residual_blocks must not be negative: {self.residual_blocks}")

    @property
    def bottom(self) -> int:
        """Side of the feature map at which the encoder ends."""
        return self.latent[1] if len(self.latent) == 3 else 4

    def channels_per_level(self, side: int) -> list[int]:
        """Channels at side/2, side/4, …, `bottom`. Raises ValueError where it does not fit."""
        if side not in SIDES:
            raise ValueError(f"image side must be one of {SIDES}, not {side}")
        if self.bottom >= side:
            raise ValueError(f"model.latent {self.latent} is not smaller than images of {side}²")
        levels = (side // self.bottom).bit_length() - 1
        return [min(self.width * 2**level, self.max_width) for level in range(levels)]
