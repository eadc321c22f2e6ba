"""Command lines of both packages: parser, configuration files, one line for every mistake."""

import errno
import re
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import (
    ActionConfigFile,
    ArgumentError,
    ArgumentParser,
    Namespace,
    set_parsing_settings,
)

from data_prep.common.console import complete, steady_output
from data_prep.common.errors import Failed, InputError, Stopped

# The texts of --help lie under the fields of the dataclasses.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

Settings = TypeVar("Settings")

NO_SPACE = ("ENOSPC", "EDQUOT", "EFBIG")
# Refusals of the file system: a fault of the user's file or folder, not of this program.
REFUSED = ("EACCES", "EPERM", "ENOTDIR", "EEXIST", "EISDIR", "EROFS", "EIO", "ENAMETOOLONG")

# jsonargparse's words, in the order in which they are replaced, and what a user reads instead.
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
}
WORDING = (
    (r"unrecognized arguments: (-[^\s=]+).*", r"unknown key \1"),
    (r"unrecognized arguments: (\S+).*", r"unexpected \1"),
    (r"Problem with given class_path '[\w.]*': ", ""),
    (r"the following arguments are required: ", "missing key "),
    (r"Expected a dot import path string: (.*)", r"expected side, channels, groups, opens: \1"),
    (r"Group '(.*)' does not accept option '(.*)'", r"unknown key \1.\2"),
    (r"Option '(.*?)' is not accepted", r"unknown key \1"),
    (r'Parser key "(.*?)": ', r"\1: "),
    (r"Does not validate .*?Errors: - (.*) Given value type: .*? Given value:", r"\1. Got value:"),
    (r" - Expected an?", " or"),
    (r"Expected an? (.*?)\. Got value: ", r"expected \1, not "),
    (r"typing\.Literal\[(.*?)\]", r"\1"),
    (r"<class '(\w+)'>", lambda match: KINDS.get(match[1], match[1])),
)
# Names of packages that differ from those of their modules.
DISTRIBUTIONS = {"PIL": "pillow", "pywt": "pywavelets", "skimage": "scikit-image", "yaml": "PyYAML"}


class Parser(ArgumentParser):
    """A parser whose help shows only keys that begin with one of `shown`, and whose errors are
    InputErrors. A bare key that is true or false means true: --prepare.dry_run."""

    shown: tuple[str, ...] = ("",)

    def format_help(self, *rest: Any, **options: Any) -> str:
        for action in self._actions:
            if not action.dest.startswith(self.shown):
                action.help = SUPPRESS
        return super().format_help(*rest, **options)

    def read(self, argv: Sequence[str]) -> Namespace:
        """The values that a command line gives. Raises InputError with the key that is wrong."""
        for action in self._actions:
            if getattr(action, "_typehint", None) is bool:
                action.nargs, action.const = "?", True
        try:
            return self.parse_args(argv)
        except ArgumentError as error:
            raise InputError(one_line(error, [action.dest for action in self._actions])) from error

    def made(self, kind: type[Settings], arguments: Namespace) -> Settings:
        """A dataclass of the values. Raises InputError where they do not fit each other."""
        try:
            values = self.instantiate(arguments)
            return kind(**{key.name: values[key.name] for key in fields(kind)})  # type: ignore[arg-type]
        except ValueError as error:
            raise InputError(str(error)) from error


def command_parser(start: str, about: str, example: str, shown: Sequence[str] = ("",)) -> Parser:
    """A parser with the help of a command: its beginning, a sentence, and words that may follow."""
    parser = Parser(
        prog=start,
        usage=f"{start} [--OPTION VALUE ...]",  # the list of all of them is below
        description=about,
        epilog=f"example: {start} {example}",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.shown = ("help", "config", "run", "print_config", *shown)
    return parser


class ConfigFile(ActionConfigFile):
    """Reads a configuration file with the files it extends. The namespace keeps the file's name."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        content = read_layers(Path(values))
        keys = [action.dest for action in parser._actions if not action.dest.endswith(".help")]
        _check_sections(content, keys, values)
        super().__call__(parser, namespace, yaml.safe_dump(content), option_string)
        namespace[self.dest][-1] = values


class StrictLoader(yaml.SafeLoader):
    """YAML without what is read otherwise than it looks: a key given twice, 010 (8), 1:30 (90)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            if key.value in keys:
                raise _unclear(f"{key.value} is there twice: keep one", key)
            keys.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if re.fullmatch(r"[-+]?0[0-9_]+|.*:.*", node.value):
            raise _unclear(f"{node.value} is no plain number: write it as one, or in quotes", node)
        return super().construct_yaml_int(node)


StrictLoader.add_constructor("tag:yaml.org,2002:int", StrictLoader.construct_yaml_int)


def _unclear(text: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


def _check_sections(content: Any, keys: Iterable[str], path: str, prefix: str = "") -> None:
    """jsonargparse's own errors do not name the file, and some of them are tracebacks."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if not any(f"{known}.".startswith(f"{name}.") for known in keys) and not prefix:
            raise InputError(f"{path}: {one_line(InputError(f'unknown key {name}'), keys)}")
        if any(known.startswith(f"{name}.") for known in keys):
            if not isinstance(value, dict):
                raise InputError(
                    f"{path}: section {name} must hold keys (key: value), not {value!r:.50}"
                )
            _check_sections(value, keys, path, f"{name}.")


def read_layers(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a YAML file, over that of the file it extends (`extends: hcp64.yaml`).

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
    role = f", which {above[-1]} extends," if above else ""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
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
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str) or not base:
        raise InputError(f"{path}: extends must name a configuration file, not {base!r}")
    return _merged(read_layers(path.parent / base, (*above, path)), content)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merged(below[key], above[key])
    return merged


def stem_of(arguments: Namespace) -> str:
    """The name of the last configuration file, without its suffix; "" without one."""
    paths = arguments.get("config") or []
    return Path(str(paths[-1])).stem if paths else ""


def exit_code(work: Callable[[], int], program: str, interrupted: str) -> int:
    """Do a command's work; the exit code, with one line on standard error where it is not 0.

    0 done, 2 bad input, 3 a training that came to nothing, 4 done but output was lost, 128 + N
    stopped by signal N; else what `work` returns.

    Args:
        work: the command.
        program: its name, for the line.
        interrupted: what is kept where Ctrl-C ends it and the exception does not say.
    """
    steady_output()
    code, line = 2, ""
    try:
        return complete(work())
    except SystemExit as ended:  # --help, --print_config
        return complete(int(ended.code or 0))
    except InputError as error:
        line = f"error: {error}"
    except ModuleNotFoundError as error:
        if (absent := absent_package(error, program)) is None:
            raise
        line = f"error: {absent}"
    except OSError as error:
        kind = errno.errorcode.get(error.errno or 0, "")
        if kind not in (*NO_SPACE, *REFUSED):
            raise
        way_out = "check what is there and who owns it, or choose another place"
        if kind in NO_SPACE:
            way_out = "make room, then give the same command again"
        line = f"error: {one_line(error)}: {way_out}"
    except Failed as error:
        code, line = 3, f"error: {InputError(str(error))}"
    except Stopped as error:
        code, line = (
            128 + error.number,
            f"{error}, state saved: the same command continues from there",
        )
    except KeyboardInterrupt as stopped:
        code, line = 130, f"interrupted: {str(stopped) or interrupted}"
    print(line, file=sys.stderr)
    return complete(code)


def absent_package(error: ModuleNotFoundError, command: str) -> str | None:
    """The package to install for a command, in one line; None where a module of ours is missing.

    Example:
        >>> absent_package(ModuleNotFoundError(name="skimage.measure"), "sharp-vae evaluate")
        'sharp-vae evaluate needs scikit-image, which is not installed: pip install scikit-image'
    """
    module = (error.name or "").partition(".")[0]
    if module in ("", "data_prep", "pipeline"):
        return None
    name = DISTRIBUTIONS.get(module, module)
    line = f"{command} needs {name}, which is not installed: pip install {name}"
    off = "prepare.track" if command.endswith(("data_prep", "prepare")) else "tracking.enabled"
    return f"{line}, or go without: --{off} false" if module == "mlflow" else line


def one_line(error: BaseException, keys: Iterable[str] = ()) -> str:
    """An error in one plain line: jsonargparse spreads its own over several, and colours them.

    keys: those that there are; the one meant by an unknown key is told with it.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = re.sub(r"\s+", " ", text).strip()
    if isinstance(error, ArgumentError):
        for pattern, words in WORDING:
            text = re.sub(pattern, words, text)
    unknown = re.search(r"(?:unknown key (-*)|unexpected )([\w.]+)$", text)
    meant = closest(unknown[2], keys) if unknown else None
    if not unknown or not meant:
        return text
    dashes = "--" if unknown[1] is None else unknown[1]
    return f"{text}: did you mean {dashes}{meant}?"


def closest(key: str, keys: Iterable[str]) -> str | None:
    """The key that was meant: of those whose last part is like the given one's, the most alike.

    Example:
        >>> closest("training.widht", ["model.width", "model.max_width", "training.epochs"])
        'model.width'
    """
    ends = {name: name.rpartition(".")[2] for name in keys}
    alike = get_close_matches(key.rpartition(".")[2], set(ends.values()), n=9, cutoff=0.75)
    named = [name for name in ends if ends[name] in alike]
    return max(named, key=lambda name: SequenceMatcher(None, key, name).ratio(), default=None)
