"""A package on disk, written once."""

from pathlib import Path

import pytest
from tiny_packages import PARTS, make_package

from pipeline.decoder_package import write


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the blur term on disk. Read only."""
    folder = tmp_path_factory.mktemp("packages") / "tiny"
    errors = write(folder, make_package())
    assert errors is not None and set(errors) == {f"{part}.pt2" for part in PARTS}
    assert all(0 <= error <= 1e-5 for error in errors.values())
    return folder
