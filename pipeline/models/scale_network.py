"""From a reconstruction to the size of its error at each pixel."""

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.layers import ResidualBlock, at_least_single, downsample, upsample

WIDTH = 16


class ScaleNetwork(nn.Module):
    """A logit for each pixel value of images in [0,1], float32.

    A small U-Net (Ronneberger et al. 2015) over three sides, with sums in place of concatenations:
    it sees a pixel's neighbourhood, and roughly where in the image the pixel lies.
    """

    def __init__(self, image_shape: tuple[int, int, int], start: float) -> None:
        """image_shape (C,H,W); start: about the logit that it gives before training.

        Raises ValueError for sides that 4 does not divide.
        """
        super().__init__()
        channels, height, width = image_shape
        if height % 4 or width % 4:
            raise ValueError(f"sides must be multiples of 4, not {height}x{width}")
        self.stem = nn.Sequential(nn.Conv2d(channels, WIDTH, 3, padding=1), ResidualBlock(WIDTH))
        wide = 2 * WIDTH
        self.down = nn.Sequential(downsample(WIDTH, wide, 2), ResidualBlock(wide))
        self.bottom = nn.Sequential(
            downsample(wide, wide, 2), ResidualBlock(wide), upsample(wide, wide, 2)
        )
        self.up = upsample(wide, WIDTH, 2)
        last = nn.Conv2d(WIDTH, channels, 3, padding=1)
        self.head = nn.Sequential(ResidualBlock(WIDTH), nn.LeakyReLU(0.1), last)
        nn.init.normal_(last.weight, std=0.01)
        self.begin(start)

    def begin(self, start: float) -> None:
        """Give about this logit everywhere, as before training."""
        nn.init.constant_(self.head[-1].get_parameter("bias"), start)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        fine = self.stem(image)
        coarse = self.down(fine)
        return at_least_single(self.head(fine + self.up(coarse + self.bottom(coarse))))
