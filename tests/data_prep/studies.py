"""A study that is prepared as people type it: a folder of subjects and the store `study`."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from data_prep.__main__ import main
from data_prep.store import Store

NAMES = [str(n) for n in range(201, 207)]


@dataclass(frozen=True)
class Study:
    """A folder of subjects, and what prepares the store `study` of it, as people type it."""

    root: Path
    folder: Path
    capsys: pytest.CaptureFixture[str]

    def run(self, *more: str, code: int = 0, **keys: object) -> str:
        """Prepare, with other keys in the file and more on the command line; what it printed."""
        # Importing MLflow takes seconds; a brain of 5 ml is no adult's.
        section = {"source": "hcp", "root": str(self.root), "size": 32, "spacing_mm": 1.0}
        section |= {"workers": 1, "track": False, "plausibility": {"action": "ignore"}}
        path = self.root.absolute().parent / "study.yaml"
        path.write_text(yaml.safe_dump({"prepare": section | keys, "training": {"epochs": 3}}))
        self.capsys.readouterr()
        assert main(["--config", str(path), *more]) == code
        told = self.capsys.readouterr()
        assert bool(told.err) == (code not in (0, 3)), told.err
        assert told.err.count("\n") <= 1
        return told.out + told.err

    @property
    def store(self) -> Store:
        return Store.open(self.folder)

    def times(self) -> dict[str, int]:
        """Time stamps of the store's files; shards by subject, `slices/ID`, whatever they hold."""
        paths = [p for p in self.folder.rglob("*") if p.is_file()]
        names = [p.relative_to(self.folder).as_posix() for p in paths]
        return {
            name.split(".")[0] if name.endswith(".npy") else name: path.stat().st_mtime_ns
            for name, path in zip(names, paths, strict=True)
        }


def content(folder: Path) -> dict[str, bytes]:
    """Every file below, hidden ones too."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
