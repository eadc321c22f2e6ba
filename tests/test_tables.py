"""No cell of a csv file that this program writes is a formula to a spreadsheet."""

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.common.files import FORMULA, csv_line, safe_cell
from pipeline.files import csv_text

BAD = ["=1+1", "+x", "-x", "@SUM(A1)", "\t=1", "\r=1", "-1+1", "+-1", "=cmd|' /C calc'!A0", "-"]


@pytest.mark.parametrize("text", BAD)
def test_text_that_begins_as_a_formula_gets_an_apostrophe(text: str) -> None:
    assert safe_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-0.5", "+1e-3", "-inf", "nan", -2, -0.5, None, True, "a=b", ""])
def test_numbers_stay_numbers_and_other_text_as_it_is(value: object) -> None:
    assert safe_cell(value) is value


@given(st.floats())
def test_every_number_is_read_back(value: float) -> None:
    for cell in (value, repr(value)):
        (row,) = csv.reader(io.StringIO(csv_line([cell])))
        assert repr(float(row[0])) == repr(value)


@given(st.lists(st.dictionaries(st.just("a"), st.text(), min_size=1), min_size=1))
def test_no_text_cell_of_a_table_is_a_formula(rows: list[dict[str, str]]) -> None:
    table = list(csv.reader(io.StringIO(csv_text(rows), newline="")))
    assert len(table) == len(rows) + 1
    for row in table[1:]:
        assert not row or not row[0].startswith(FORMULA) or re.fullmatch("[-+.0-9einfa]+", row[0])


def test_a_row_with_another_column_is_refused() -> None:
    with pytest.raises(ValueError, match="strange"):
        csv_text([{"a": 1, "strange": 2}], ["a"])


def test_csv_files_are_written_by_these_two_alone() -> None:
    """So that there is no other way for a name to become a formula."""
    root = Path(__file__).parents[1]
    for path in [*(root / "data_prep").rglob("*.py"), *(root / "pipeline").rglob("*.py")]:
        if path.parts[-2:] != ("common", "files.py"):
            assert not re.search(r"csv\.(writer|DictWriter)", path.read_text("utf-8")), path
