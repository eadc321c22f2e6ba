"""Tables that are safe to open in a spreadsheet, which runs what begins as a formula does."""

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

# OWASP, CSV Injection; the last four are the wide forms that some programs read alike.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def safe_cell(value: Any) -> Any:
    """A cell's value; text that a spreadsheet would calculate gets an apostrophe in front.

    >>> safe_cell("=1+1"), safe_cell("-0.5"), safe_cell(-2)
    ("'=1+1", '-0.5', -2)
    """
    if isinstance(value, str) and value.startswith(FORMULA) and not NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def csv_line(cells: Iterable[Any]) -> str:
    """A row of a csv file, with its end of line; None is an empty cell."""
    line = io.StringIO()
    # The writer puts what holds a character of its end of line into quotes: either has to be one.
    csv.writer(line, lineterminator="\r\n").writerow([safe_cell(cell) for cell in cells])
    return line.getvalue().removesuffix("\r\n") + "\n"
