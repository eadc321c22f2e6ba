"""The words in a file's header that tell simulated people from scans."""

from typing import Any

MARK = "SIMULATED"
DESCRIPTION = f"{MARK}: deformed ICBM152 template"


def is_simulated(image: Any) -> bool:
    """Whether a file's header says that nobody was scanned: those of the embedded cohort do.

    image: of nibabel; of formats without a description, such as MGH, nothing is known.
    """
    header = image.header
    return "descrip" in header and header["descrip"].item().startswith(MARK.encode())
