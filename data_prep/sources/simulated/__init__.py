"""A cohort of simulated people, deformed from a template, and what tells them from scans."""

from typing import Any

MARK = "SIMULATED"
DESCRIPTION = f"{MARK}: deformed ICBM152 template"


def is_simulated(image: Any) -> bool:
    """True if a file's header says that nobody was scanned: those of the embedded cohort do.

    image: of nibabel; of formats without a description, such as MGH, nothing is known.
    """
    header = image.header
    return "descrip" in header and header["descrip"].item().startswith(MARK.encode())
