"""The forms in which the blur term weighs frequencies."""

from typing import Literal

Form = Literal["wiener", "positive_definite"]
