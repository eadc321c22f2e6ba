"""Configuration files in layers: `extends: hcp64.yaml` in a file makes that file its base."""

from pathlib import Path
from typing import Any

import yaml

from data_prep.common.errors import InputError


def read_layers(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a YAML file, over that of the file it extends, if it names one.

    The name is relative to the file that holds it. Sections are merged key by key; a list or any
    other value replaces the one below.

    Args:
        path: the file.
        above: the files that extend it, the top one first.

    Raises:
        InputError: naming a file that can't be read, holds no keys, or extends itself.
    """
    if path.resolve() in [file.resolve() for file in above]:
        circle = " -> ".join(map(str, (*above, path)))
        raise InputError(f"configuration files extend each other in a circle: {circle}")
    content = _read(path, f", which {above[-1]} extends," if above else "")
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str) or not base:
        raise InputError(f"{path}: extends must name a configuration file, not {base!r}")
    return _merged(read_layers(path.parent / base, (*above, path)), content)


def _read(path: Path, role: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"configuration file {path}{role} can't be read: {error.strerror}"
        ) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{path}, line {line}, is not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # control characters, no UTF-8, no such date
        raise InputError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: the file must hold keys (key: value), not {content!r:.50}")
    return content


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merged(below[key], above[key])
    return merged
