"""The code that made a result: its version and, in a checkout, the commit."""

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
    """
    told = {}
    with contextlib.suppress(PackageNotFoundError):
        told["version"] = version(DISTRIBUTION)
    # An environment may lie in somebody's own repository, whose commit would say nothing.
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if _git("ls-files", f"{PACKAGES[0]}/__init__.py"):
            commit, changes = (
                _git("rev-parse", "HEAD"),
                _git("status", "--porcelain", "--", *PACKAGES),
            )
            told |= {"commit": commit[:SHORT], "clean": str(not changes).lower()}
    return told


def _git(*words: str) -> str:
    # Variables of a hook, say, would have it look at another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    git = ["git", "--no-optional-locks", "-C", str(ROOT)]
    done = subprocess.run(
        [*git, *words], env=environment, capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
