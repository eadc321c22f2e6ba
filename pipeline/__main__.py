"""Command line: python -m pipeline train|evaluate|compare --config C.yaml [--run RUN] [--key …]"""

import errno
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from pipeline.config import Config
from pipeline.errors import InputError, Stopped

# The texts of --help lie under the fields of the dataclasses.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

USAGE = """usage: python -m pipeline COMMAND --config CONFIG.yaml [--run RUN] [--key value …]

commands:
  train       train a VAE on a prepared store                       -> WORK/runs/RUN
  evaluate    score a trained run on people it has not seen         -> WORK/runs/RUN/evaluation
              --reconstructions: somebody else's reconstructions    -> WORK/scores/NAME
  compare     train and score every reconstruction term at one rate -> WORK/comparisons/RUN
  calibration draw the calibration of scored runs side by side      -> WORK/calibration.png
  export      write a run's decoder package, and register it        -> WORK/packages/RUN
  reconstruct undersampled MR images under a decoder's prior        -> WORK/reconstructions
  restore     noisy, blurred or coarse images under the same        -> WORK/restorations
  anomaly     map where a volume is not what a decoder expects      -> WORK/anomaly/IMAGE
  lesions     insert lesions into healthy slices, and find them     -> WORK/lesions

python -m pipeline COMMAND --help lists every key and option."""


DESCRIPTIONS = {
    "train": "train a run",
    "evaluate": "score a run",
    "compare": "train and score every reconstruction term at one rate",
}


def _parser(command: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"python -m pipeline {command}",
        description=DESCRIPTIONS[command],
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of the configuration")
    parser.add_argument(
        "--run", type=str, default="", help="name of the run; the config's by default"
    )
    parser.add_argument(
        "--restart", type=bool, default=False, help="train anew what was trained before"
    )
    parser.add_class_arguments(Config)
    return parser


def _config(parser: ArgumentParser, arguments: Namespace) -> Config:
    """The configuration that was asked for, its default names filled in from the file's name."""
    plain = arguments.clone()
    for key in ("config", "run", "restart"):
        plain.pop(key, None)
    try:
        values = parser.instantiate(plain) if hasattr(parser, "instantiate") else None
        if values is None:
            values = parser.instantiate_classes(plain)
        config = Config(**{name: values[name] for name in Config.__dataclass_fields__})
    except ValueError as error:
        raise InputError(str(error)) from error
    return config


def _stem(arguments: Namespace) -> str:
    paths = arguments.get("config") or []
    return Path(str(paths[-1])).stem if paths else ""


def _named(config: Config, stem: str) -> Config:
    name = config.prepare.name or stem
    store = config.data.store or name
    if not store:
        raise InputError("no configuration: pass --config configs/demo.yaml, or --data.store STORE")
    return replace(
        config,
        prepare=replace(config.prepare, name=name),
        data=replace(config.data, store=store),
    )


def _run_config(path: Path) -> Config:
    """The resolved configuration that a run keeps beside its results."""
    if not path.exists():
        raise InputError(f"no run at {path.parent}: train it first (make train)")
    parser, argv = _parser("train"), ["--config", str(path)]
    _check_files(argv)
    return _config(parser, parser.parse_args(argv))


def _train(argv: Sequence[str]) -> None:
    parser = _parser("train")
    arguments = parser.parse_args(list(argv))
    stem = _stem(arguments)
    config = _named(_config(parser, arguments), stem)
    from pipeline.stages import train_run  # takes seconds, which a mistyped key need not wait for

    train_run(config, arguments.run or stem or config.data.store, arguments.restart)


def _evaluate(argv: Sequence[str]) -> None:
    if any(word.partition("=")[0] == "--reconstructions" for word in argv):
        _with_options("evaluate", argv, FOREIGN)
        return
    from pipeline.stages import evaluate_run, run_folder, with_run_config

    parser = _parser("evaluate")
    arguments = parser.parse_args(list(argv))
    if arguments.restart:
        raise InputError("evaluate has no --restart: train has; what changed is scored anew anyway")
    run = arguments.run or _stem(arguments)
    if not run:
        raise InputError("say which run to score: --run RUN, or --config CONFIG.yaml")
    saved = run_folder(run) / "config.yaml"
    run_config = _run_config(saved)
    if not arguments.config:  # without a file, the run's own settings are the defaults
        arguments = parser.parse_args(["--config", str(saved), *argv])
    evaluate_run(with_run_config(_config(parser, arguments), run_config, _said(argv)), run)


def _said(argv: Sequence[str]) -> set[str]:
    """Dotted keys, or sections (--model '{…}'), that the command line gives."""
    words = (word.partition("=")[0].removeprefix("--") for word in argv if word.startswith("--"))
    return {word.rstrip("+") for word in words}  # key+ adds to a list


def _compare(argv: Sequence[str]) -> None:
    parser = _parser("compare")
    arguments = parser.parse_args(_switched(argv, "--compare.quick"))
    stem = _stem(arguments)
    config = _named(_config(parser, arguments), stem)
    from pipeline.comparison.compare import compare

    compare(config, arguments.run or stem or config.data.store, arguments.restart)


def _switched(argv: Sequence[str], key: str) -> list[str]:
    """The arguments with a bare `key` read as `key true`."""
    follows = dict(enumerate(argv[1:]))
    return [
        f"{word}=true" if word == key and follows.get(i, "--").startswith("--") else word
        for i, word in enumerate(argv)
    ]


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
}

# Commands that take options of their own in place of the configuration. A module has a frozen
# dataclass Options, whose fields become --options, and run(options); its docstring's first line
# is the description.
MODULES: dict[str, str] = {
    "export": "pipeline.exporting",
    "anomaly": "pipeline.analysis.anomaly.anomaly",
    "calibration": "pipeline.evaluation.side_by_side",
    "reconstruct": "pipeline.analysis.inverse.reconstruct",
    "restore": "pipeline.analysis.inverse.restore",
    "lesions": "pipeline.analysis.anomaly.lesions",
}


# What `evaluate --reconstructions` is: no run is scored, but what somebody else made.
FOREIGN = "pipeline.evaluation.foreign"


def _with_options(command: str, argv: Sequence[str], name: str = "") -> None:
    module = import_module(name or MODULES[command])
    parser = ArgumentParser(
        prog=f"python -m pipeline {command}",
        description=(module.__doc__ or "").partition("\n")[0],
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_class_arguments(module.Options)
    arguments = parser.parse_args(list(argv))
    try:
        options = module.Options(**vars(arguments))
    except ValueError as error:
        raise InputError(str(error)) from error
    module.run(options)


for _name in MODULES:
    COMMANDS[_name] = partial(_with_options, _name)

# jsonargparse's words, in the order in which they are replaced, and what a user reads instead.
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text",
         "NoneType": "null"}  # fmt: skip
WORDING = (
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
    (r"<class '(\w+)'>", lambda found: KINDS.get(found[1], found[1])),
)


# What the file system says of a user's file or folder, not of a fault in this program.
REFUSALS = (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError)


def _one_line(error: BaseException) -> str:
    """An error in one plain line: what jsonargparse spreads over several, and colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = re.sub(r"\s+", " ", text).strip()
    if isinstance(error, ArgumentError):
        for pattern, words in WORDING:
            text = re.sub(pattern, words, text)
    return text


def _check_files(argv: Sequence[str]) -> None:
    """Raise InputError, naming the file, where a --config holds no sections.

    jsonargparse's own errors do not name the file, and some of them are tracebacks.
    """
    paths = [word.partition("=")[2] or after for word, after in pairwise([*argv, ""])
             if word.partition("=")[0] == "--config"]  # fmt: skip
    for path in filter(lambda path: Path(path).is_file(), paths):
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else "?"
            raise InputError(f"{path}, line {line}, is no YAML: {error.problem}") from error
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise InputError(f"{path} can't be read as YAML: {error}") from error
        _check_section(content, Config(), path, "the file")


def _check_section(content: Any, defaults: Any, path: str, name: str) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{path}: {name} must hold keys (key: value), not {content!r:.50}")
    for key, value in content.items():
        if is_dataclass(getattr(defaults, str(key), None)):
            _check_section(value, getattr(defaults, key), path, f"section {key}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0 done, 2 bad input, 128 + N stopped by signal N."""
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    command = COMMANDS.get(argv[0])
    try:
        if command is None:
            raise InputError(f"unknown command {argv[0]!r}: choose {' or '.join(COMMANDS)}")
        _check_files(argv[1:])
        command(argv[1:])
    except (InputError, ArgumentError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            way_out = "make room, then give the same command again"
        elif isinstance(error, REFUSALS) or error.errno == errno.EROFS:
            way_out = "see what lies there and whose it is, or choose another place"
        else:
            raise
        print(f"error: {_one_line(error)}: {way_out}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"{error}, state saved: the same command goes on from there", file=sys.stderr)
        return 128 + error.number
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
