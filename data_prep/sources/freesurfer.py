"""What FreeSurfer puts beside subjects: averages of many people, and a person's time points.

Its longitudinal stream (Reuter 2012) makes a template BASE of a person's time points POINT, and
images POINT.long.BASE; the folder of the template lists its time points in the file base-tps.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

# Folders that come with FreeSurfer or are linked into every folder of subjects: no persons.
AVERAGE = re.compile(r"fsaverage.*|cvs_avg35.*|[lr]h\.EC_average|V1_average")

LONG = re.compile(r"(?P<point>.+)\.long\.(?P<base>.+)", re.S)

# Names of a template that say nothing of whose it is.
GENERIC = {"base", "template"}


def is_average(name: str) -> bool:
    """Whether a name is that of an average of many people."""
    return AVERAGE.fullmatch(name) is not None


def origins(name: str) -> tuple[str, ...]:
    """Names that mean the same person as POINT.long.BASE does; none for other names."""
    match = LONG.fullmatch(name)
    if not match:
        return ()
    point, base = match["point"], match["base"]
    return (point,) if base.lower() in GENERIC else (base, point)


def templates(names: Iterable[str], listed: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Of some names those of a template whose time points are there too.

    listed: the time points by template, of `listed_points`.
    """
    names = set(names)
    bases = {match["base"] for name in names if (match := LONG.fullmatch(name))}
    bases |= {base for base, points in listed.items() if names & set(points)}
    return bases & names


def listed_points(root: Path, template: str, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Time points of the templates among `names`, as FreeSurfer lists them.

    template: the path template; only {subject}/mri/… is FreeSurfer's.
    """
    start, _, rest = template.partition("{subject}")
    if not rest.startswith("/mri/"):
        return {}
    found = {}
    for name in names:
        try:
            text = (root / f"{start}{name}" / "base-tps").read_text("utf-8", "replace")
        except OSError:
            continue
        found[name] = tuple(text.split())
    return found
