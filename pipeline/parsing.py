"""A configuration from YAML files and the command line, and errors of both in plain words."""

from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import (
    ActionConfigFile,
    ArgumentError,
    ArgumentParser,
    Namespace,
    set_parsing_settings,
)

from data_prep.common.invocation import program
from data_prep.common.layers import read_layers
from data_prep.common.wording import one_line
from pipeline.config import Config
from pipeline.errors import InputError

# The texts of --help lie under the fields of the dataclasses.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


class _ConfigFile(ActionConfigFile):
    """Reads a configuration file with the files it extends. The namespace keeps the file's name."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        content = read_layers(Path(values))
        # jsonargparse's own errors do not name the file, and some of them are tracebacks.
        _check_section(content, Config(), values, "the file")
        super().__call__(parser, namespace, yaml.safe_dump(content), option_string)
        namespace[self.dest][-1] = values


class _Parser(ArgumentParser):
    """A parser whose help leaves out what its command does not use; --print_config has all keys."""

    shown: Sequence[str] = ("",)

    def format_help(self, *rest: Any, **options: Any) -> str:
        hidden = [
            action for action in self._actions if not action.dest.startswith(tuple(self.shown))
        ]
        texts = [action.help for action in hidden]
        for action in hidden:
            action.help = SUPPRESS
        try:
            return super().format_help(*rest, **options)
        finally:
            for action, text in zip(hidden, texts, strict=True):
                action.help = text


def options_parser(command: str, description: str, example: str = "") -> _Parser:
    """A parser of a command's options, whose errors are exceptions.

    example: of options, as typed after the command.
    """
    start = f"{program('pipeline')} {command}"
    return _Parser(
        prog=start,
        # The list of all options is below; as a usage line it would fill the screen.
        usage=f"{start} [--OPTION VALUE ...]",
        description=description,
        epilog=f"example: {start} {example}" if example else "",
        exit_on_error=False,
        allow_abbrev=False,
    )


def config_parser(
    command: str, description: str = "", example: str = "", shown: Sequence[str] = ("",)
) -> _Parser:
    """A parser of --config, --run, --restart and every key of the configuration.

    All commands accept all keys, so that one file and one set of overrides serves them all; help
    tells those that begin with one of `shown`.
    """
    parser = options_parser(command, description, example)
    parser.add_argument("--config", action=_ConfigFile, help="YAML file of the configuration")
    parser.add_argument(
        "--run", type=str, default="", help="name of the run; the config's by default"
    )
    parser.add_argument(
        "--restart", type=bool, default=False, help="train anew what was trained before"
    )
    parser.add_class_arguments(Config)
    parser.shown = ("help", "config", "run", "print_config", *shown)
    return parser


def parsed(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """What a command line asks for. Raises InputError with the key that is wrong, in one line."""
    try:
        return parser.parse_args(argv)
    except ArgumentError as error:
        keys = [action.dest for action in parser._actions]
        raise InputError(one_line(error, keys)) from error


def config_of(parser: ArgumentParser, arguments: Namespace) -> Config:
    """The configuration that was asked for. Raises InputError for values that do not fit."""
    plain = arguments.clone()
    for key in ("config", "run", "restart"):
        plain.pop(key, None)
    try:
        values = parser.instantiate(plain) if hasattr(parser, "instantiate") else None
        if values is None:
            values = parser.instantiate_classes(plain)
        return Config(**{name: values[name] for name in Config.__dataclass_fields__})
    except ValueError as error:
        raise InputError(str(error)) from error


def load_config(path: str | Path, *overrides: str) -> Config:
    """A configuration from a YAML file.

    Args:
        path: of the YAML file.
        overrides: as on the command line.

    Raises:
        InputError: with the file or key, in one line.

    Example:
        >>> load_config("configs/demo.yaml", "--training.epochs=5").training.epochs
        5
    """
    parser = config_parser("train")
    return config_of(parser, parsed(parser, ["--config", str(path), *overrides]))


def _check_section(content: Any, defaults: Any, path: str, name: str) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{path}: {name} must hold keys (key: value), not {content!r:.50}")
    for key, value in content.items():
        if is_dataclass(getattr(defaults, str(key), None)):
            _check_section(value, getattr(defaults, key), path, f"section {key}")
