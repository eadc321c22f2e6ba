"""Which code made a result: its version and, in a checkout of the repository, the commit."""

import contextlib
import functools
import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("data_prep", "pipeline")
DISTRIBUTION = "sharp-vae-mri"
SHORT = 12


@functools.cache
def code_version() -> dict[str, str]:
    """`version`, `commit` and `clean`, as far as they can be told.

    `clean` is "true" where the two packages are as the commit has them; what else lies in the
    checkout computes nothing. An installed package has no commit.

    Example:
        >>> sorted(code_version()) in (["clean", "commit", "version"], ["version"])
        True
    """
    found = {}
    with contextlib.suppress(PackageNotFoundError):
        found["version"] = version(DISTRIBUTION)
    # An environment may lie in somebody's own repository, whose commit would say nothing.
    if not _git("ls-files", f"{PACKAGES[0]}/__init__.py"):
        return found
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", *PACKAGES)
    if commit and changes is not None:
        found |= {"commit": commit[:SHORT], "clean": str(not changes).lower()}
    return found


def _git(*words: str) -> str | None:
    """What git says of the checkout; None where there is no git, or it refuses."""
    # Variables of a hook, say, would have it look at another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(ROOT), *words],
            env=environment, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
