"""Command line: python -m pipeline train|evaluate|compare --config C.yaml [--run RUN] [--key …]"""

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from data_prep.common.console import complete, steady_output
from data_prep.common.invocation import program
from data_prep.common.switches import switch_keys, switched
from data_prep.common.wording import absent_package, one_line
from pipeline.commands.given import check_given
from pipeline.config import Config
from pipeline.errors import Failed, InputError, Stopped
from pipeline.parsing import config_of, config_parser, load_config, options_parser, parsed

USAGE = """usage: {program} COMMAND --config CONFIG.yaml [--run RUN] [--key value …]

commands:
  train       train a VAE on a prepared store                       -> WORK/runs/RUN
  evaluate    score a trained run on subjects it has not seen       -> WORK/runs/RUN/evaluation
              --reconstructions: those of another method            -> WORK/scores/NAME
  compare     train and score every reconstruction term at one rate -> WORK/comparisons/RUN
  export      write a run's decoder package, and register it        -> WORK/packages/RUN
  reconstruct undersampled or degraded images under a decoder       -> WORK/reconstructions
  anomaly     map where a volume is not what a decoder expects      -> WORK/anomaly/IMAGE
  lesions     insert lesions into healthy slices, and find them     -> WORK/lesions
  ui          open MLflow's pages at the runs

{program} COMMAND --help lists every key and option."""


@dataclass(frozen=True)
class Help:
    """What --help says of a command that takes the configuration.

    keys: beginnings of the keys that the command uses; example: what is typed after it.
    """

    description: str
    keys: tuple[str, ...]
    example: str


TRAINED = ("restart", "data", "model", "likelihood", "prior", "training", "tracking")
HELP = {
    "train": Help(
        "Train a run on a prepared store, or go on with one that was interrupted.",
        TRAINED,
        "--config configs/demo.yaml --run first --training.epochs 5",
    ),
    "evaluate": Help(
        "Score a trained run on subjects that it has not seen. The configuration is the run's own; "
        "these keys can be changed. Reconstructions of another program: "
        "evaluate --reconstructions FOLDER --help.",
        ("evaluation", "tracking"),
        "--run first --evaluation.split validation",
    ),
    "compare": Help(
        "Train and score every reconstruction term at one rate.",
        (*TRAINED, "evaluation", "compare"),
        "--config configs/compare_hcp64.yaml --compare.terms [gaussian,blur] --compare.quick",
    ),
}


def _parser(command: str) -> ArgumentParser:
    told = HELP[command]
    return config_parser(command, told.description, told.example, told.keys)


def _parsed(parser: ArgumentParser, argv: Sequence[str], settings: type = Config) -> Namespace:
    return parsed(parser, switched(argv, switch_keys(settings)))


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


def _starting(run: str) -> None:
    """Tell who sits at a terminal that something happens, before imports that take seconds."""
    if sys.stdout.isatty() and os.environ.get("RANK", "0") == "0":  # of several the main one
        print(f"run {run}: starting", flush=True)


def _train(argv: Sequence[str]) -> None:
    parser = _parser("train")
    arguments = _parsed(parser, argv)
    stem = _stem(arguments)
    config = _named(config_of(parser, arguments), stem)
    run = arguments.run or stem or config.data.store
    _starting(run)
    from pipeline.training.train import train_run  # slow: a mistyped key need not wait for it

    train_run(config, run, arguments.restart)


def _evaluate(argv: Sequence[str]) -> None:
    if any(word.partition("=")[0] == "--reconstructions" for word in argv):
        _with_options("evaluate", argv, FOREIGN)
        return
    from pipeline.files import existing_run

    parser = _parser("evaluate")
    arguments = _parsed(parser, argv)
    if arguments.restart:
        raise InputError("evaluate has no --restart: whatever changed is scored again anyway")
    run = arguments.run or _stem(arguments)
    if not run:
        raise InputError("no run given: use --run RUN, or --config CONFIG.yaml")
    saved = existing_run(run, _stem(arguments) if arguments.run else "") / "config.yaml"
    run_config = load_config(saved)  # resolved, as the run keeps it beside its results
    if not arguments.config:  # without a file, the run's own settings are the defaults
        arguments = _parsed(parser, ["--config", str(saved), *argv])
    _starting(run)
    from pipeline.evaluation.evaluate import evaluate_run, with_run_config

    evaluate_run(with_run_config(config_of(parser, arguments), run_config, _given(argv)), run)


def _given(argv: Sequence[str]) -> set[str]:
    """Dotted keys, or sections (--model '{…}'), that the command line gives."""
    words = (word.partition("=")[0].removeprefix("--") for word in argv if word.startswith("--"))
    return {word.rstrip("+") for word in words}  # key+ adds to a list


def _compare(argv: Sequence[str]) -> None:
    parser = _parser("compare")
    arguments = _parsed(parser, argv)
    stem = _stem(arguments)
    config = _named(config_of(parser, arguments), stem)
    from pipeline.comparison.compare import compare

    compare(config, arguments.run or stem or config.data.store, arguments.restart)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
}

# Commands that take options of their own in place of the configuration. A module has a frozen
# dataclass Options, whose fields become --options, and run(options); its docstring's first line
# is the description.
MODULES: dict[str, str] = {
    "export": "pipeline.package.export",
    "anomaly": "pipeline.analysis.anomaly",
    "reconstruct": "pipeline.analysis.reconstruct",
    "lesions": "pipeline.analysis.lesions",
    "ui": "pipeline.commands.ui",
}

# What --help shows as typed after each of them.
EXAMPLES: dict[str, str] = {
    "export": "--run demo --onnx true",
    "anomaly": "--package demo --image volume.nii.gz",
    "reconstruct": "--package demo --store demo --acceleration 4",
    "lesions": "--package demo --store demo",
    "evaluate": "--reconstructions model.pt2 --store demo",
    "ui": "--port 5001",
}


# `evaluate --reconstructions` scores the reconstructions of another method, not a run.
FOREIGN = "pipeline.evaluation.foreign"


def _with_options(command: str, argv: Sequence[str], name: str = "") -> None:
    check_given(command, argv)  # before torch is imported
    module = import_module(name or MODULES[command])
    description = (module.__doc__ or "").partition("\n")[0]
    parser = options_parser(command, description, EXAMPLES.get(command, ""))
    parser.add_class_arguments(module.Options)
    arguments = _parsed(parser, argv, module.Options)
    try:
        options = module.Options(**vars(arguments))
    except ValueError as error:
        raise InputError(str(error)) from error
    module.run(options)


for _name in MODULES:
    COMMANDS[_name] = partial(_with_options, _name)

# What is said on Ctrl-C of commands that keep what they have done, where they do not say it.
INTERRUPTED = {
    "train": "the same command continues from the last checkpoint, if there is one",
    "compare": "the same command continues: what is trained or scored is kept",
    "ui": "the pages are closed",
}
STARTS_AGAIN = "nothing was saved, the same command starts again"

# Refusals of the file system: a fault of the user's file or folder, not of this program.
REFUSALS = (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 done, 2 bad input, 3 a training that came to nothing, 4 done but output was lost, 128 + N
    stopped by signal N.
    """
    steady_output()
    return complete(_main(argv))


def _main(argv: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE.format(program=program("pipeline")))
        return 0 if argv else 2
    command = COMMANDS.get(argv[0])
    try:
        if command is None:
            raise InputError(f"unknown command {argv[0]!r}: choose {' or '.join(COMMANDS)}")
        command(argv[1:])
    except (InputError, ArgumentError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        line = absent_package(error, f"{program('pipeline')} {argv[0]}")
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            way_out = "make room, then give the same command again"
        elif isinstance(error, REFUSALS) or error.errno == errno.EROFS:
            way_out = "check what is there and who owns it, or choose another place"
        else:
            raise
        print(f"error: {one_line(error)}: {way_out}", file=sys.stderr)
        return 2
    except Failed as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 3
    except Stopped as error:
        print(f"{error}, state saved: the same command continues from there", file=sys.stderr)
        return 128 + error.number
    except KeyboardInterrupt as stopped:  # its text, if any, says what is kept
        told = str(stopped) or INTERRUPTED.get(argv[0], STARTS_AGAIN)
        print(f"interrupted: {told}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
