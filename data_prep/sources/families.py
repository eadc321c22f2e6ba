"""Families: who they are by the subjects table, and which of them are one."""

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.names import is_unknown, same
from data_prep.config import PrepareConfig

# A family of more than this many subjects, and this share of all, is no family but a code.
LARGE, LARGE_SHARE = 10, 0.2


@dataclass(frozen=True)
class Families:
    """Family by subject, as `names.same` has it; notes: what the user should know of the table."""

    of: Mapping[str, str]
    notes: tuple[str, ...] = ()


def read_families(
    root: Path, config: PrepareConfig, names: Mapping[str, tuple[str, ...]]
) -> Families:
    """Families from a csv with the columns Subject and Family_ID; a blank, or a code for missing
    (names.UNKNOWN), is a family that is not known.

    A subject that is not among `names` is an error, or skipped where
    prepare.subjects_table_extra says so, as a study's table may list more subjects than have
    images; a table with none of them is an error in any case.

    Args:
        root: the folder that the table's path starts from.
        config: says where the table is.
        names: the subjects, each with other names under which a row may have it.

    Raises:
        InputError: no such table, a column missing, a row without, with a repeated or with an
            unknown subject, or one of `names` missing in the table.
    """
    with_image = {same(one) for name, others in names.items() for one in (name, *others)}
    path = root / config.subjects_table
    unknown = ""
    families: dict[str, str] = {}
    codes: Counter[str] = Counter()
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if "Subject" not in (reader.fieldnames or []):
                raise InputError(f"prepare.subjects_table: {path} has no column Subject")
            if "Family_ID" not in (reader.fieldnames or []):
                raise InputError(
                    f"prepare.subjects_table: {path} has no column Family_ID; leave the table out "
                    "where families are not known"
                )
            for row in reader:
                place = f"prepare.subjects_table: {path}, row {reader.line_num}"
                name = same(row["Subject"] or "")
                if not name:
                    raise InputError(f"{place} has no Subject")
                if name in families:
                    raise InputError(f"{place} names subject {name} a second time")
                family = (row["Family_ID"] or "").strip()
                if is_unknown(family):
                    codes[family] += name in with_image
                    family = ""
                families[name] = family
                if name not in with_image and not unknown:
                    unknown = f"{place} names subject {name}, which has no image"
    except UnicodeDecodeError as error:
        raise InputError(
            f"prepare.subjects_table: {path} cannot be read: {error}: save it as UTF-8"
        ) from None
    except (OSError, csv.Error) as error:
        raise InputError(f"prepare.subjects_table: {path} cannot be read: {error}") from None
    if not families.keys() & with_image:
        raise InputError(
            f"prepare.subjects_table: {path} names none of the {len(names)} subjects found, "
            f"the first of which is {min(names)}"
        )
    if unknown and config.subjects_table_extra == "refuse":
        raise InputError(
            f"{unknown}: remove the row, correct prepare.template, or set "
            "prepare.subjects_table_extra to ignore"
        )
    absent = sorted(
        name
        for name, others in names.items()
        if not any(same(one) in families for one in (name, *others))
    )
    if absent:
        raise InputError(
            f"prepare.subjects_table: {path} has no row for {len(absent)} of the subjects found, "
            f"the first of which is {absent[0]}: add them, with a blank Family_ID where the family "
            "is not known, as siblings could end up in different splits otherwise"
        )
    return Families(families, tuple(_notes(codes, families, with_image)))


def _notes(codes: Counter[str], families: Mapping[str, str], with_image: set[str]) -> list[str]:
    notes = [
        f"Family_ID '{code}' is read as not known: each of its {count} subjects is a family of its "
        "own"
        for code, count in sorted(codes.items())
        if code and count
    ]
    here = [family for name, family in families.items() if family and name in with_image]
    for family, count in Counter(here).most_common(1):
        if count > LARGE and count > LARGE_SHARE * len(with_image):
            notes.append(
                f"{count} subjects are of the family '{family}', and so in one split: where that "
                "means that a family is not known, leave Family_ID blank"
            )
    return notes
