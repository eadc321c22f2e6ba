"""Families by the subjects table, a csv or tsv file that is read strictly."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.names import is_unknown, same
from data_prep.config import PrepareConfig

# A family of more than this many subjects, and this share of all, is no family but a code.
LARGE, LARGE_SHARE = 10, 0.2

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}


def read_families(
    root: Path, config: PrepareConfig, names: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, str], list[str]]:
    """Family by subject, as `names.same` has them, and what the user should know of the table.

    It has the columns Subject and Family_ID; a blank, or a code for missing (names.UNKNOWN), is a
    family that is not known, "". A subject that is not among `names` is an error, or skipped where
    prepare.subjects_table_extra says so, as a study's table may list more subjects than have
    images; a table with none of them is an error in any case.

    Args:
        root: the folder that the table's path starts from.
        config: says where the table is.
        names: the subjects, each with other names under which a row may have it.

    Raises:
        InputError: no such table, a column missing or named twice, a row of another length, without
            a subject, with a repeated or an unknown one, or with a family that another row spells
            otherwise (12 and 12.0, Fam01 and fam01); or one of `names` is missing in the table.
    """
    with_image = {same(one) for name, others in names.items() for one in (name, *others)}
    path = root / config.subjects_table
    table = f"prepare.subjects_table: {path}"
    unknown = ""
    families: dict[str, str] = {}
    codes: Counter[str] = Counter()
    spelt: dict[str, tuple[str, int]] = {}
    for number, subject, family in _rows(path, table):
        name, place = same(subject), f"{table}, row {number}"
        if not name:
            raise InputError(f"{place} has no Subject")
        if name in families:
            raise InputError(f"{place} names subject {name} a second time")
        family = family.strip()
        if is_unknown(family):
            codes[family] += name in with_image
            family = ""
        other, line = spelt.setdefault(_plain(family), (family, number))
        if other != family:
            raise InputError(
                f"{place} has the family '{family}', which row {line} spells '{other}': spell it "
                "one way, as relatives could end up in different splits otherwise"
            )
        families[name] = family
        if name not in with_image and not unknown:
            unknown = f"{place} names subject {name}, which has no image"
    if not families.keys() & with_image:
        raise InputError(
            f"{table} names none of the {len(names)} subjects found, the first of which is"
            f" {min(names)}"
        )
    if unknown and config.subjects_table_extra == "refuse":
        raise InputError(
            f"{unknown}: remove the row, correct prepare.template, or set "
            "prepare.subjects_table_extra to ignore"
        )
    rows = families.keys()
    absent = sorted(n for n, others in names.items() if not rows & set(map(same, (n, *others))))
    if absent:
        raise InputError(
            f"{table} has no row for {len(absent)} of the subjects found, "
            f"the first of which is {absent[0]}: add them, with a blank Family_ID where the family "
            "is not known, as siblings could end up in different splits otherwise"
        )
    notes = [
        f"Family_ID '{code}' is read as not known: each of its {count} subjects is a family of its "
        "own"
        for code, count in sorted(codes.items())
        if code and count
    ]
    sizes = Counter(family for name, family in families.items() if family and name in with_image)
    for family, count in sizes.most_common(1):
        if count > LARGE and count > LARGE_SHARE * len(with_image):
            notes.append(
                f"{count} subjects are of the family '{family}', and so in one split: where that "
                "means that a family is not known, leave Family_ID blank"
            )
    return families, notes


def _plain(family: str) -> str:
    """Equal where two spellings are of one family: without case, and a number as a number."""
    number = re.fullmatch(r"0*(\d+)(\.0*)?", family)
    return number[1] if number else same(family).casefold()


def _rows(path: Path, table: str) -> Iterator[tuple[int, str, str]]:
    """Row by row its last line in the file, Subject and Family_ID."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            first = stream.readline()
            separator = max(SEPARATORS, key=first.count)
            stream.seek(0)
            reader = csv.reader(stream, delimiter=separator, strict=True)
            header = next(reader, [])
            seen = f"columns by {SEPARATORS[separator]}: {', '.join(header)}"
            for column in header:
                if header.count(column) > 1:
                    raise InputError(f"{table}, row 1 names the column {column} twice")
            if "Subject" not in header:
                raise InputError(f"{table} has no column Subject ({seen})")
            if "Family_ID" not in header:
                raise InputError(
                    f"{table} has no column Family_ID ({seen}); leave the table out where families "
                    "are not known"
                )
            subject, family = header.index("Subject"), header.index("Family_ID")
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise InputError(
                        f"{table}, row {reader.line_num} has {len(row)} cells and the header"
                        f" {len(header)} (separated by {SEPARATORS[separator]}): quote a cell that"
                        " holds a separator"
                    )
                yield reader.line_num, row[subject], row[family]
    except UnicodeDecodeError as error:
        raise InputError(f"{table} cannot be read: {error}: save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise InputError(f"{table} cannot be read: {error}") from None
