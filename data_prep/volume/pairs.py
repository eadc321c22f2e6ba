"""Volumes in two files: a header, .hdr, and its voxels, .img (NIfTI pairs and Analyze 7.5)."""

from pathlib import Path

_OTHER = {".hdr": ".img", ".img": ".hdr"}


def pair_of(path: Path) -> tuple[Path, Path] | None:
    """Header and voxels of the pair that a file is one half of; None where it is no half of one.

    Endings are compared without case, and either file may end in .gz. Where the other half is not
    there, its path is the likeliest one.
    """
    stem, ending, packed = _parts(path)
    other = _OTHER.get(ending.lower())
    if other is None:
        return None
    matching = other.upper() if ending.isupper() else other
    places = [
        path.with_name(stem + cased + gz)
        for cased in (matching, other, other.upper())
        for gz in (packed, "", ".gz", ".GZ")
    ]
    half = next((place for place in places if place.exists()), places[0])
    return (path, half) if ending.lower() == ".hdr" else (half, path)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that a volume consists of: one, or the two of a pair."""
    return pair_of(path) or (path,)


def _parts(path: Path) -> tuple[str, str, str]:
    """A file's name as stem, ending and ".gz" where it is compressed."""
    name, packed = path.name, ""
    if name.lower().endswith(".gz"):
        name, packed = name[:-3], name[-3:]
    bare = Path(name)
    return bare.stem, bare.suffix, packed
