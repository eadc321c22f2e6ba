"""Is a store, byte for byte, what was written: python -m data_prep verify --store NAME."""

from collections.abc import Callable
from pathlib import Path

from data_prep.common.progress import progress
from data_prep.report import writing as report
from data_prep.store import (
    MANIFEST,
    OWN_DIGEST,
    Store,
    StoreError,
    canonical_digest,
    manifest_bytes,
)


def problems(folder: Path, notify: Callable[[str], None]) -> list[str]:
    """Read every file of the store and compare digests; what is wrong, a line a file.

    Raises:
        StoreError: the manifest itself cannot be used.
    """
    store = Store.open(folder, check_shards=False)
    manifest = dict(store.manifest)
    if OWN_DIGEST not in manifest:
        raise StoreError(
            f"{folder / MANIFEST} is of an older version, which did not seal it: prepare it again"
        )
    found = []
    own = manifest.pop(OWN_DIGEST)
    sealed = canonical_digest(manifest) == own
    if not sealed or manifest_bytes(store.manifest) != (folder / MANIFEST).read_bytes():
        found.append(f"{folder / MANIFEST} was changed after it was written")
    for entry in progress(store.entries, len(store.entries), "verifying", notify):
        problem = store.shard_problem(entry, read=True)
        if problem:
            found.append(problem)
    sums = folder / report.FOLDER / report.SUMS
    return found + [f"{path} is not as {sums} says" for path in report.damage(folder)]


def unlisted_files(folder: Path) -> list[str]:
    """Files in the store that its manifest does not know, relative to it."""
    store = Store.open(folder, check_shards=False)
    listed = {MANIFEST, *(entry.shard for entry in store.entries)}
    listed |= {f"{report.FOLDER}/{name}" for name in (report.PAGE, report.TABLE, report.SUMS)}
    files = (p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file())
    return [name for name in files if name not in listed]
