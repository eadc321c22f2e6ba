"""The mathematics of the paper as pure functions (Bredell et al. 2023, arXiv 2304.05939)."""

from typing import Literal

# The forms in which the blur term weighs frequencies.
Form = Literal["wiener", "positive_definite"]
