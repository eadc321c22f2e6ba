"""What is odd about a usable volume: flags, and the expectations of an adult's brain.

A flag is a code, or "code: what was seen", as the manifest records it.

What is not as expected of a brain becomes a flag of the subject, or puts it into quarantine, as
prepare.plausibility.action says. Every range can be set in the configuration. Measured, in the
table, is: the skull-stripped T1w volumes of 12 of the 21 people of OASIS-1 that the MICCAI 2012
multi-atlas challenge released, aged 18 to 90, and one of multiple sclerosis (Lesjak 2017, doi
10.1007/s12021-017-9348-7).
"""

# ruff: noqa: RUF009 (_expect makes a dataclass field)

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

FORMS_DISAGREE = "sform_qform"  # the two affines are more than a voxel apart at a corner
MIRRORED = "left_right"  # by the one affine left is where the other has right
ASSUMED_ORIENTATION = "assumed_orientation"  # by prepare.assume_orientation, not by the header
UNITS = "units"  # lengths that are not in mm
BACKGROUND = "background"  # not 0, or in the middle of the intensities
MASK_VALUES = "mask_values"  # more than one above 0
BLACK_SLICES = "black_slices"
SAME_SCAN = "same_scan"  # another subject's is the same

# Words for the codes that stand alone.
WORDS = {
    FORMS_DISAGREE: "its qform lies more than a voxel away from its sform, which is used",
    MIRRORED: "its sform and qform disagree about left and right: the sform is used; look which is "
    "true, or leave it out",
    SAME_SCAN: "another subject's scan is the same",
}

Range = tuple[float, float]


def code_of(flag: str) -> str:
    """The code of a flag, which programs look for."""
    return flag.partition(": ")[0]


def words_of(flag: str) -> str:
    """What a person reads of a flag."""
    code, _, words = flag.partition(": ")
    return words or WORDS.get(code, code)


def _expect(
    usual: Range, measure: tuple[str, str], *, below: str = "", above: str = "", source: str
) -> Any:
    """A row of the table: range, name and unit; what may be the matter below and above; source."""
    label, unit = measure
    words = {"label": label, "unit": unit, "below": below, "above": above, "source": source}
    return field(default=usual, metadata=words)


_SCALE = "are the voxel sizes in the header right?"
_SKULL = "skull left in? Then give prepare.mask_template"
_MASK = "Then give prepare.mask_template"


def _extent(label: str) -> Any:
    source = "measured: width 126 to 147, length 159 to 183, height 124 to 141 mm"
    beyond = {"below": _SCALE, "above": f"{_SKULL}; or {_SCALE}"}
    return _expect((90, 220), (label, "mm"), **beyond, source=source)


@dataclass(frozen=True)
class PlausibilityConfig:
    """What to expect of a brain, and what to do where it is otherwise. Ranges include their ends.

    Args:
        action: what becomes of a subject that is not as expected: a flag, the quarantine, or
            nothing (ignore).
        brain_ml: volume of the brain, ml.
        width_mm: extent of its largest piece from left to right, mm.
        length_mm: the same from back to front.
        height_mm: the same from bottom to top.
        cut_off_percent: the brain on an outer face of the volume, of its largest slice that way.
        largest_piece_percent: the brain's largest connected piece, of the brain.
        filled_percent: the brain, of the smallest box around its largest piece.
        box_percent: the brain, of all voxels of the image.
        mean_percent: mean intensity in the brain, from what becomes 0 to what becomes 1.
        saturated_percent: voxels of the brain that share its largest intensity.
        oblique_degrees: the largest angle between an axis of the voxels and the body's nearest.
        shear_degrees: by how much the angle between two axes of the voxels differs from 90.

    Raises:
        ValueError: naming the range that is wrong.
    """

    action: Literal["flag", "quarantine", "ignore"] = "flag"
    brain_ml: Range = _expect(
        (700, 2200),
        ("brain volume", "ml"),
        below=f"brain cut off, a child or an animal, or {_SCALE}",
        above=f"{_SKULL}; or {_SCALE}",
        source="total brain volume of 5,216 people aged 44 to 77: men 1,234 ± 98 ml, women 1,116 ±"
        " 90 (Ritchie 2018, doi 10.1093/cercor/bhy109); the rest is for atrophy below, and"
        " for fluid and wide masks above; measured: 1,130 to 1,630",
    )
    width_mm: Range = _extent("brain width")
    length_mm: Range = _extent("brain length")
    height_mm: Range = _extent("brain height")
    cut_off_percent: Range = _expect(
        (0, 10),
        ("brain on the volume's border", "%"),
        above="brain cut off by the field of view, or skull and neck left in?",
        source="measured: 0; a brainstem cut across is about 3% of the largest slice",
    )
    largest_piece_percent: Range = _expect(
        (95, 100),
        ("brain in one piece", "%"),
        below=f"specks around it, or intensities below 0 inside? {_MASK}",
        source="measured: 99.9 to 100",
    )
    filled_percent: Range = _expect(
        (30, 65),
        ("brain in the smallest box around it", "%"),
        below=f"half of it not above 0? {_MASK}",
        above=f"is that the whole image? {_MASK}",
        source="measured: 43 to 45; an ellipsoid has 52, a box 100",
    )
    box_percent: Range = _expect(
        (1, 60),
        ("brain in the image", "%"),
        below="is that a brain?",
        above="is the background 0? Else give prepare.mask_template",
        source="measured: 16 to 30, and 45 where the image ends at the brain",
    )
    mean_percent: Range = _expect(
        (30, 85),
        ("mean intensity between the percentiles", "%"),
        below="something very bright inside?",
        above="something very dark inside?",
        source="measured: 55 to 60 (T1w), 69 (FLAIR)",
    )
    saturated_percent: Range = _expect(
        (0, 0.5),
        ("brain at its largest intensity", "%"),
        above="intensities cut off before?",
        source="measured: under 0.001; above 0.5 the 99.5th percentile itself is cut off",
    )
    oblique_degrees: Range = _expect(
        (0, 5),
        ("tilt of the axes", "°"),
        above="slices are cut along the voxels, so they are tilted, too; align the volume where"
        " that matters",
        source="5 degrees move the ends of a brain by 8 mm across 90 mm; scans aligned to AC-PC"
        " have 0",
    )
    shear_degrees: Range = _expect(
        (0, 1),
        ("shear of the axes", "°"),
        above="the pixel grid is square and shows a sheared brain: resample the volume",
        source="scanners' grids have none, but for a CT's gantry tilt; qforms cannot hold one",
    )

    def __post_init__(self) -> None:
        for row in expectations():
            low, high = getattr(self, row.name)
            if not 0 <= low <= high < float("inf"):
                raise ValueError(
                    f"prepare.plausibility.{row.name} must be two numbers, the least and the most,"
                    f" from 0 on, got [{low}, {high}]"
                )


def expectations() -> list[Any]:
    """The table's rows: dataclass fields with metadata label, unit, below, above and source."""
    return [row for row in fields(PlausibilityConfig) if "source" in row.metadata]


def doubts(measured: Mapping[str, float], config: PlausibilityConfig) -> tuple[str, ...]:
    """A flag for each measure that is not as expected; none where config.action is ignore."""
    flags = []
    for row in expectations() if config.action != "ignore" else ():
        words, value = row.metadata, measured.get(row.name)
        low, high = getattr(config, row.name)
        if value is None or low <= value <= high:
            continue
        unit = words["unit"] if words["unit"] in ("%", "°") else f" {words['unit']}"
        hint = words["below"] if value < low else words["above"]
        text = f"{row.name}: {words['label']} {value:,g}{unit}, expected {low:,g} to {high:,g}"
        flags.append(f"{text}: {hint}" if hint else text)
    return tuple(flags)
