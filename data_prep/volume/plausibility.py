"""Is this the brain of an adult? One table of expectations, each with its source.

What is not as expected becomes a flag of the subject, or puts it into quarantine, as
prepare.plausibility.action says. Every range can be set in the configuration.

Measured, in the table, is: the skull-stripped T1w volumes of 12 of the 21 people of OASIS-1 that
the MICCAI 2012 multi-atlas challenge released, aged 18 to 90, and one of multiple sclerosis
(Lesjak 2017, doi 10.1007/s12021-017-9348-7).
"""

# ruff: noqa: RUF009 (_expect makes a dataclass field)

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from data_prep.flags import flag

Range = tuple[float, float]
Action = Literal["flag", "quarantine", "ignore"]


def _expect(
    low: float, high: float, label: str, unit: str, *, below: str = "", above: str = "", source: str
) -> Any:
    """A row of the table. below, above: what may be the matter beyond an end of the range."""
    words = {"label": label, "unit": unit, "below": below, "above": above, "source": source}
    return field(default=(low, high), metadata=words)


_EXTENT = "measured: width 126 to 147, length 159 to 183, height 124 to 141 mm"
_SCALE = "are the voxel sizes in the header right?"
_SKULL = "skull left in? Then give prepare.mask_template"


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
        ValueError: naming the key that is wrong.
    """

    action: Action = "flag"
    brain_ml: Range = _expect(
        700, 2200, "brain volume", "ml",
        below=f"brain cut off, a child or an animal, or {_SCALE}",
        above=f"{_SKULL}; or {_SCALE}",
        source="total brain volume of 5,216 people aged 44 to 77: men 1,234 ± 98 ml, women 1,116 ±"
        " 90 (Ritchie 2018, doi 10.1093/cercor/bhy109); the rest is for atrophy below, and"
        " for fluid and wide masks above; measured: 1,130 to 1,630",
    )  # fmt: skip
    width_mm: Range = _expect(
        90, 220, "brain width", "mm", below=_SCALE, above=f"{_SKULL}; or {_SCALE}", source=_EXTENT
    )
    length_mm: Range = _expect(
        90, 220, "brain length", "mm", below=_SCALE, above=f"{_SKULL}; or {_SCALE}", source=_EXTENT
    )
    height_mm: Range = _expect(
        90, 220, "brain height", "mm", below=_SCALE, above=f"{_SKULL}; or {_SCALE}", source=_EXTENT
    )
    cut_off_percent: Range = _expect(
        0, 10, "brain on the volume's border", "%",
        above="brain cut off by the field of view, or skull and neck left in?",
        source="measured: 0; a brainstem cut across is about 3% of the largest slice",
    )  # fmt: skip
    largest_piece_percent: Range = _expect(
        95, 100, "brain in one piece", "%",
        below="specks around it, or intensities below 0 inside? Then give prepare.mask_template",
        source="measured: 99.9 to 100",
    )  # fmt: skip
    filled_percent: Range = _expect(
        30, 65, "brain in the smallest box around it", "%",
        below="half of it not above 0? Then give prepare.mask_template",
        above="is that the whole image? Then give prepare.mask_template",
        source="measured: 43 to 45; an ellipsoid has 52, a box 100",
    )  # fmt: skip
    box_percent: Range = _expect(
        1, 60, "brain in the image", "%",
        below="is that a brain?",
        above="is the background 0? Else give prepare.mask_template",
        source="measured: 16 to 30, and 45 where the image ends at the brain",
    )  # fmt: skip
    mean_percent: Range = _expect(
        30, 85, "mean intensity between the percentiles", "%",
        below="something very bright inside?", above="something very dark inside?",
        source="measured: 55 to 60 (T1w), 69 (FLAIR)",
    )  # fmt: skip
    saturated_percent: Range = _expect(
        0, 0.5, "brain at its largest intensity", "%",
        above="intensities cut off before?",
        source="measured: under 0.001; above 0.5 the 99.5th percentile itself is cut off",
    )  # fmt: skip
    oblique_degrees: Range = _expect(
        0, 5, "tilt of the axes", "°",
        above="slices are cut along the voxels, so they are tilted, too; align the volume where"
        " that matters",
        source="5 degrees move the ends of a brain by 8 mm across 90 mm; scans aligned to AC-PC"
        " have 0",
    )  # fmt: skip
    shear_degrees: Range = _expect(
        0, 1, "shear of the axes", "°",
        above="the pixel grid is square and shows a sheared brain: resample the volume",
        source="scanners' grids have none, but for a CT's gantry tilt; qforms cannot hold one",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.action not in ("flag", "quarantine", "ignore"):
            raise ValueError(
                "prepare.plausibility.action must be flag, quarantine or ignore,"
                f" got '{self.action}'"
            )
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


def doubts(found: Mapping[str, float], config: PlausibilityConfig) -> tuple[str, ...]:
    """A flag for each finding that is not as expected; none where nothing is to be done of them."""
    flags: list[str] = []
    if config.action == "ignore":
        return ()
    for row in expectations():
        value = found.get(row.name)
        low, high = getattr(config, row.name)
        if value is None or low <= value <= high:
            continue
        words = row.metadata
        hint = words["below"] if value < low else words["above"]
        text = f"{words['label']} {value:,g}{_unit(row)}, expected {low:,g} to {high:,g}"
        flags.append(flag(row.name, f"{text}: {hint}" if hint else text))
    return tuple(flags)


def _unit(row: Any) -> str:
    unit = row.metadata["unit"]
    return unit if unit in ("%", "°") else f" {unit}"
