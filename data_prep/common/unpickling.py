"""Pickles of plain containers and arrays of numbers, read without running what they name.

A pickle runs code by naming a callable. The few names that arrays need stand for objects of ours
here, which numpy never interprets: bytes, their type and their shape.
"""

import pickle
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np


class Refused(pickle.UnpicklingError):
    """The pickle asks for something other than arrays of numbers."""


def read_arrays(file: BinaryIO) -> dict[Any, Any]:
    """A dict, nested or not, of numbers, text, lists and arrays; Python 2's text is bytes.

    Raises:
        Refused: the pickle asks for anything else, or is no dict; nothing in it was run.
        Exception: any other, as a damaged pickle can fail in any way.
    """
    tree = _plain(_ArrayUnpickler(file, encoding="bytes").load())
    if not isinstance(tree, dict):
        raise Refused(f"refused: a dict of arrays is expected, not {type(tree).__name__}")
    return tree


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value.values if isinstance(value, _Array) else value


class _Array:
    """An array of the file; `values` is read-only."""

    __slots__ = ("values",)

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_column, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes) or by_column:
            raise Refused("refused: its array is not of numbers, row by row")
        self.values = np.frombuffer(content, dtype.order + dtype.kind).reshape(shape)


class _Dtype:
    """A type of numbers; of its state only the byte order means anything."""

    __slots__ = ("kind", "order")

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.kind = name.decode("latin1") if isinstance(name, bytes) else str(name)
        self.order = ""
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", self.kind):
            raise Refused(f"refused: its array is of {name!r}, not of numbers")

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] in (">", b">") else ""


def _latin1(text: Any = None, encoding: Any = None) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise Refused("refused: it encodes something other than bytes")
    return text.encode("latin1")


class _Name:
    """A name that the file may use. Calling it makes a fresh object; it can't be changed."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused(f"refused: it sets {name} of what it may only call")


_NAMES = {
    ("numpy", "ndarray"): _Name(_Array),
    ("numpy", "dtype"): _Name(_Dtype),
    # numpy 2 renamed numpy.core to numpy._core.
    ("numpy.core.multiarray", "_reconstruct"): _Name(_Array),
    ("numpy._core.multiarray", "_reconstruct"): _Name(_Array),
    # How Python 3 writes bytes for Python 2.
    ("_codecs", "encode"): _Name(_latin1),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise Refused(f"refused: it asks for {module}.{name}, and nothing was run")
        return _NAMES[module, name]
