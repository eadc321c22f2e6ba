"""The folder of an analysis's results: earlier results are removed, other files are left alone.

Parts of the work that take long are kept in OUTPUT/.parts until the command ends, so that the same
command goes on after an interruption, of whatever kind. Other inputs, another package or another
version of this program start anew.
"""

import hashlib
import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from data_prep import quantity
from pipeline.files import atomic_file, writable, write_text

# Patterns of the files that the last run in a folder may have written, a line each.
LIST = ".results"
PARTS = ".parts"
DAMAGED = (OSError, ValueError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError)


class Parts:
    """Finished parts of a command's work; a block that ends well removes them.

    Ctrl-C in the block says what is kept.
    """

    def __init__(self, folder: Path, key: str) -> None:
        """key: of what decides the parts; "" keeps none."""
        self._folder = folder
        self._key = key

    def __len__(self) -> int:
        return sum(1 for path in self._paths() if path.suffix == ".pt")

    def __enter__(self) -> "Parts":
        if count := len(self):
            kept = quantity(count, "finished part")
            print(f"goes on with what an interrupted run has kept: {kept}")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for path in self._paths():
                path.unlink()
            if self._folder.is_dir() and not any(self._folder.iterdir()):
                self._folder.rmdir()
        elif issubclass(kind, KeyboardInterrupt) and (count := len(self)):
            where = f"{quantity(count, 'finished part')} kept in {self._folder}"
            raise KeyboardInterrupt(f"{where}: the same command goes on from there") from None

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returned, now or in the run before: tensors, numbers, text, lists, dicts."""
        if not self._key:
            return make()
        path = self._folder / f"{self._key}-{_digest(name)}.pt"
        if path.is_file():
            try:
                return torch.load(path, weights_only=True)
            except DAMAGED:
                pass  # it is made again
        made = make()
        with atomic_file(path) as stream:
            torch.save(made, stream)
        return made

    def _paths(self) -> list[Path]:
        return list(self._folder.glob(f"{self._key}-*")) if self._key else []


def begin(output: Path, patterns: Iterable[str], inputs: Mapping[str, Any] | None = None) -> Parts:
    """Make the folder, check that it can be written to, and remove an earlier run's results.

    Args:
        output: the folder.
        patterns: relative paths of all files that this run may write, `*` allowed. They are kept in
            the folder, so that the next run removes these and nothing else.
        inputs: all that decides the results, as JSON can hold it; None: no parts are kept.

    Returns:
        The place of finished parts, which holds those of an interrupted run of the same inputs.

    Raises:
        OSError: it can't be written to.
    """
    writable(output)
    key = "" if inputs is None else _digest(json.dumps([inputs, _program()], sort_keys=True))
    home, kept = output.resolve(), output / LIST
    earlier = kept.read_text(errors="replace").splitlines() if kept.is_file() else []
    for pattern in earlier:
        if not pattern or Path(pattern).is_absolute():
            continue
        for path in output.glob(pattern):
            mine = path.parent.name == PARTS and key and path.name.startswith(f"{key}-")
            if path.is_file() and not mine and path.resolve().is_relative_to(home):
                path.unlink()
    write_text(kept, "".join(f"{pattern}\n" for pattern in [*patterns, f"{PARTS}/*"]))
    return Parts(output / PARTS, key)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _program() -> list[str]:
    """The versions of this program's source and of torch."""
    source = hashlib.sha256()
    home = Path(__file__).parents[1]
    for path in sorted(home.rglob("*.py")):
        source.update(f"{path.relative_to(home)}\n".encode() + path.read_bytes())
    return [source.hexdigest(), torch.__version__]
