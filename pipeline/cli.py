"""Command line: python -m pipeline COMMAND [--config C.yaml] [--run RUN] [--key …]"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from data_prep.common.command_line import Parser, command_parser, exit_code, stem_of
from data_prep.common.wording import program
from pipeline.analysis.jobs import AnomalyOptions, LesionsOptions, ReconstructOptions
from pipeline.config import Config, ForeignOptions, config_parser, load_config
from pipeline.errors import InputError
from pipeline.files import existing_run

TRAINED = ("restart", "data", "model", "likelihood", "prior", "training", "tracking")
GOES_ON = "what is finished is kept: the same command goes on from there"
STARTS_AGAIN = "nothing was saved, the same command starts again"


@dataclass(frozen=True)
class Command:
    """A row of the table of commands.

    Args:
        makes: its line in the list of commands.
        example: words that may follow it.
        module: for a command with options of its own: it has a frozen dataclass Options, whose
            fields become --options, and run(options); its docstring's first line is the help's.
        options: that dataclass, where importing the module takes seconds.
        about: the help's first lines, where there is no module.
        keys: beginnings of the configuration's keys that it uses, where there is no module.
        interrupted: what Ctrl-C leaves.
    """

    makes: str
    example: str
    module: str = ""
    options: Any = None
    about: str = ""
    keys: tuple[str, ...] = ()
    interrupted: str = STARTS_AGAIN


COMMANDS = {
    "prepare": Command(
        "raw images become a prepared store                  -> WORK/stores/NAME",
        "--config configs/hcp64.yaml --prepare.root /data/HCP_1200",
    ),
    "verify": Command("compare a store's files with their digests", "--store demo"),
    "train": Command(
        "train a VAE on a prepared store                     -> WORK/runs/RUN",
        "--config configs/demo.yaml --run first --training.epochs 5",
        about="Train a run on a prepared store, or go on with one that was interrupted.",
        keys=TRAINED,
        interrupted="the same command continues from the last checkpoint, if there is one",
    ),
    "evaluate": Command(
        "score a trained run on subjects it has not seen     -> WORK/runs/RUN/evaluation\n"
        "              --reconstructions: those of another method          -> WORK/scores/NAME",
        "--run first --evaluation.split validation",
        about="Score a trained run on subjects that it has not seen. The configuration is the "
        "run's own; these keys can be changed. Reconstructions of another program: "
        "evaluate --reconstructions FOLDER --help.",
        keys=("evaluation", "tracking"),
    ),
    "compare": Command(
        "train and score reconstruction terms at one rate    -> WORK/comparisons/RUN",
        "--config configs/compare_hcp64.yaml --compare.terms [gaussian,blur] --compare.quick",
        about="Train and score every reconstruction term at one rate.",
        keys=(*TRAINED, "evaluation", "compare"),
        interrupted="the same command continues: what is trained or scored is kept",
    ),
    "export": Command(
        "write a run's decoder package, and register it      -> WORK/packages/RUN",
        "--run demo --onnx true",
        "pipeline.package.export",
    ),
    "reconstruct": Command(
        "undersampled or degraded images under a decoder     -> WORK/reconstructions",
        "--package demo --store demo --acceleration 4",
        "pipeline.analysis.reconstruct",
        ReconstructOptions,
        "Reconstruct undersampled or degraded MR images under a decoder's prior, beside total"
        " variation.",
        interrupted=GOES_ON,
    ),
    "anomaly": Command(
        "map where a volume is not what a decoder expects    -> WORK/anomaly/IMAGE",
        "--package demo --image volume.nii.gz",
        "pipeline.analysis.anomaly",
        AnomalyOptions,
        "Map where a NIfTI volume is not what the decoder expects.",
    ),
    "lesions": Command(
        "insert lesions into healthy slices, and find them   -> WORK/lesions",
        "--package demo --store demo",
        "pipeline.analysis.lesions",
        LesionsOptions,
        "Insert lesions into healthy held-out subjects, and find them.",
        interrupted=GOES_ON,
    ),
    "ui": Command(
        "open MLflow's pages at the runs",
        "--port 5001",
        "pipeline.tracking.ui",
        interrupted="the pages are closed",
    ),
}
# `evaluate --reconstructions` scores the reconstructions of another method, not a run.
FOREIGN = Command(
    "",
    "--reconstructions model.pt2 --store demo",
    "pipeline.evaluation.foreign",
    ForeignOptions,
    "Score the reconstructions of another program: pairs of files, or the program itself.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: data_prep.common.command_line.exit_code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["prepare"], ["verify"]):
        from data_prep.__main__ import main as prepare

        return prepare(words if words[0] == "verify" else words[1:])
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    name, known = (words or [""])[0], COMMANDS.get((words or [""])[0])
    kept = known.interrupted if known else STARTS_AGAIN
    return exit_code(lambda: _command(words), f"{program('pipeline')} {name}", kept)


def _command(words: Sequence[str]) -> int:
    name, argv = (words[0], words[1:]) if words else ("", [])
    if name in ("", "-h", "--help"):
        print(f"usage: {program('pipeline')} COMMAND --config CONFIG.yaml [--run RUN] [--key …]\n")
        print("\n".join(["commands:", *(f"  {n:12}{c.makes}" for n, c in COMMANDS.items())]))
        print(f"\n{program('pipeline')} COMMAND --help lists every key and option.")
        return 0 if name else 2
    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}: choose {' or '.join(COMMANDS)}")
    row = COMMANDS[name]
    if name == "evaluate" and any(w.partition("=")[0] == "--reconstructions" for w in argv):
        row = FOREIGN
    if row.module:
        kind, about = row.options, row.about
        if kind is None:
            module = import_module(row.module)
            kind, about = module.Options, (module.__doc__ or "").partition("\n")[0]
        options = command_parser(f"{program('pipeline')} {name}", about, row.example)
        options.add_class_arguments(kind)
        given = options.made(kind, options.read(argv))
        import_module(row.module).run(given)
        return 0
    parser = config_parser(f"{program('pipeline')} {name}", row.about, row.example, row.keys)
    {"train": _train, "evaluate": _evaluate, "compare": _compare}[name](parser, argv)
    return 0


def _train(parser: Parser, argv: Sequence[str]) -> None:
    config, run, restart = _trained(parser, argv)
    _starting(run)
    from pipeline.training.train import train_run  # slow: a mistyped key need not wait for it

    train_run(config, run, restart)


def _compare(parser: Parser, argv: Sequence[str]) -> None:
    config, run, restart = _trained(parser, argv)
    from pipeline.comparison.compare import compare

    compare(config, run, restart)


def _trained(parser: Parser, argv: Sequence[str]) -> tuple[Config, str, bool]:
    """The configuration with the names of its store, the run's name, and --restart."""
    arguments = parser.read(argv)
    config, stem = parser.made(Config, arguments), stem_of(arguments)
    name = config.prepare.name or stem
    store = config.data.store or name
    if not store:
        raise InputError("no configuration: pass --config configs/demo.yaml, or --data.store STORE")
    config = replace(
        config,
        prepare=replace(config.prepare, name=name),
        data=replace(config.data, store=store),
    )
    return config, arguments.run or stem or store, arguments.restart


def _evaluate(parser: Parser, argv: Sequence[str]) -> None:
    arguments = parser.read(argv)
    if arguments.restart:
        raise InputError("evaluate has no --restart: whatever changed is scored again anyway")
    stem = stem_of(arguments)
    run = arguments.run or stem
    if not run:
        raise InputError("no run given: use --run RUN, or --config CONFIG.yaml")
    saved = existing_run(run, stem if arguments.run else "") / "config.yaml"
    run_config = load_config(saved)  # resolved, as the run keeps it beside its results
    if not arguments.config:  # without a file, the run's own settings are the defaults
        arguments = parser.read(["--config", str(saved), *argv])
    # Dotted keys, or sections (--model '{…}'), that the command line gives; key+ adds to a list.
    given = {w.partition("=")[0][2:].rstrip("+") for w in argv if w.startswith("--")}
    _starting(run)
    from pipeline.evaluation.evaluate import evaluate_run, with_run_config

    evaluate_run(with_run_config(parser.made(Config, arguments), run_config, given), run)


def _starting(run: str) -> None:
    """Tell who sits at a terminal that something happens, before imports that take seconds."""
    if sys.stdout.isatty() and os.environ.get("RANK", "0") == "0":  # of several the main one
        print(f"run {run}: starting", flush=True)
