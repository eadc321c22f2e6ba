"""Shapes that the signatures of all reconstruction terms share."""

from jaxtyping import Bool, Complex, Float
from torch import Tensor

# (C,H,W) of an image.
Shape = tuple[int, int, int]
# Images, reconstructions or residuals, intensity in units of [0,1].
Images = Float[Tensor, "B C H W"]
Mask = Bool[Tensor, "B #C H W"]
PerImage = Float[Tensor, " B"]
Precision = Float[Tensor, "#B 1 H half_W"]
# Transfer function of the kernel that the model blurs with; None where there is no kernel.
Transfer = Complex[Tensor, "#B 1 H half_W"] | None
