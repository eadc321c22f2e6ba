"""Flags of a usable source, as the manifest records them: a code, or "code: what was found"."""

# A NIfTI's two affines, both given, place a corner of the volume more than a voxel apart.
FORMS_DISAGREE = "sform_qform"

# The header gives no orientation, and prepare.assume_orientation does.
ASSUMED_ORIENTATION = "assumed_orientation"

# The header gives lengths in another unit than mm.
UNITS = "units"

# The background is not 0, or the intensities are centred on it.
BACKGROUND = "background"

# A mask holds more than one value above 0.
MASK_VALUES = "mask_values"

# Some slices show nothing.
BLACK_SLICES = "black_slices"

# Another subject's scan is the same one.
SAME_SCAN = "same_scan"

# What the report says of a code that stands alone.
WORDS = {
    FORMS_DISAGREE: "its qform lies more than a voxel away from its sform, which is used",
    SAME_SCAN: "another subject's scan is the same",
}


def flag(code: str, words: str) -> str:
    """A flag that says what was found."""
    return f"{code}: {words}"


def code_of(flag: str) -> str:
    """The code of a flag, which programs look for."""
    return flag.partition(": ")[0]


def words_of(flag: str) -> str:
    """What a person reads of a flag."""
    code, _, words = flag.partition(": ")
    return words or WORDS.get(code, code)
