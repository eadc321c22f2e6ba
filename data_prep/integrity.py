"""Is a store, byte for byte, what was written: python -m data_prep verify --store NAME."""

from collections.abc import Callable
from pathlib import Path

from data_prep.common.progress import progress
from data_prep.report import page
from data_prep.store import MANIFEST, OWN_DIGEST, Store, StoreError, manifest_bytes


def problems(folder: Path, notify: Callable[[str], None]) -> list[str]:
    """Read every file of the store and compare digests; what is wrong, a line a file.

    Raises:
        StoreError: the manifest itself cannot be used.
    """
    store = Store.open(folder, check_shards=False)
    path = folder / MANIFEST
    if OWN_DIGEST not in store.manifest:
        raise StoreError(f"{path} is of an older version, which did not seal it: prepare it again")
    lines = []
    if manifest_bytes(store.manifest) != path.read_bytes():
        lines.append(f"{path} was changed after it was written")
    for entry in progress(store.entries, len(store.entries), "verifying", notify):
        if problem := store.shard_problem(entry, read=True):
            lines.append(problem)
    sums = folder / page.FOLDER / page.SUMS
    return lines + [f"{file} is not as {sums} says" for file in page.damage(folder)]


def unlisted_files(folder: Path) -> list[str]:
    """Files in the store that its manifest does not know, relative to it."""
    store = Store.open(folder, check_shards=False)
    listed = {MANIFEST, *(entry.shard for entry in store.entries)}
    listed |= {f"{page.FOLDER}/{name}" for name in (page.PAGE, page.TABLE, page.SUMS)}
    files = (p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file())
    return [name for name in files if name not in listed]
