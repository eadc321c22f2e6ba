"""Command line: python -m data_prep [verify] --config configs/demo.yaml [--prepare.root DIR] …"""

import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_prep.common.command_line import ConfigFile, command_parser, exit_code, stem_of
from data_prep.common.errors import InputError
from data_prep.common.files import find_folder, work_folder
from data_prep.common.wording import program
from data_prep.config import PLAIN_NAME, PrepareConfig

# Sections of the same file that belong to the other package; passed over, never checked here.
OTHER_SECTIONS = (
    "data",
    "model",
    "prior",
    "likelihood",
    "training",
    "evaluation",
    "compare",
    "tracking",
)
GOOD, BAD_INPUT, QUARANTINED = 0, 2, 3


@dataclass(frozen=True)
class Section:
    """The part of the configuration that is of this package."""

    prepare: PrepareConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the store that the configuration describes, or verify one.

    Returns the exit code: 0 all good; 2 bad input, in one line; 3 the store is there, but more
    subjects than prepare.max_quarantined are not usable; 4 all good, but output was lost; 130
    interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    verified = words[:1] == ["verify"]
    return exit_code(
        lambda: _verify(words[1:]) if verified else _prepare(words),
        program("data_prep"),
        "the same command goes on from here",
    )


def _prepare(words: Sequence[str]) -> int:
    config = configuration(words)
    # Only now: help and a mistyped key should not wait for scipy.
    from data_prep.preparation import list_work, prepare, summary

    work = work_folder()
    if config.dry_run:
        print("\n".join(list_work(config, work)))
        return GOOD
    prepared = prepare(config, work)
    print("\n".join(summary(prepared, work / "stores" / config.name)), flush=True)
    # There while a change is still to be logged, should MLflow fail or this process be killed.
    pending = work / "stores" / f".{config.name}.untracked"
    if config.track and prepared.changed:
        pending.touch()
    if config.track and pending.exists():
        from data_prep import tracking

        tracking.track(prepared.store, work)
        pending.unlink()
    return QUARANTINED if len(prepared.store.quarantined) > config.max_quarantined else GOOD


def configuration(words: Sequence[str]) -> PrepareConfig:
    """The `prepare` section from the files and overrides of a command line.

    Raises:
        InputError: naming the file, section or key that is wrong.
    """
    parser = command_parser(
        program("data_prep"),
        "Raw images become a prepared store, WORK/stores/NAME (WORK in the environment; work where "
        "it is not set). Keys that are not of `prepare` are ignored. To check a store's files: "
        f"{program('data_prep')} verify --store NAME.",
        "--config configs/hcp64.yaml --prepare.root /data/HCP_1200",
    )
    parser.add_argument("--config", action=ConfigFile, help="a YAML file, such as configs/*")
    parser.add_class_arguments(PrepareConfig, "prepare")
    for section in OTHER_SECTIONS:
        parser.add_argument(f"--{section}", type=dict, default={}, help=SUPPRESS)
    for option in ("run", "restart"):
        parser.add_argument(f"--{option}", nargs="?", help=SUPPRESS)
    # A bare switch of another section, as --compare.quick, is true; its type is not known here.
    following = [*words[1:], "--"]
    others = tuple(f"--{section}." for section in OTHER_SECTIONS)
    words = [
        f"{word}=true"
        if word.startswith(others) and "=" not in word and after[:2] == "--"
        else word
        for word, after in zip(words, following, strict=True)
    ]
    arguments = parser.read(words)
    config, stem = parser.made(Section, arguments).prepare, stem_of(arguments)
    if not config.name and stem:
        if not PLAIN_NAME.fullmatch(stem):
            raise InputError(f"prepare.name is not set and '{stem}' cannot name a store: set it")
        config = replace(config, name=stem)
    return config


@dataclass(frozen=True)
class VerifyOptions:
    """A store to check."""

    store: str = ""
    """Its folder, or its name under WORK/stores."""


def _verify(words: Sequence[str]) -> int:
    """Compare every byte of a store with its digests; 0 where it is whole, else 2."""
    parser = command_parser(
        f"{program('data_prep')} verify",
        "Read a prepared store and compare every file with the manifest's digests.",
        "--store demo",
    )
    parser.add_class_arguments(VerifyOptions)
    store = parser.read(words).store
    if not store:
        raise InputError("verify needs --store, the name or folder of a store")
    from data_prep.store import MANIFEST

    folder = find_folder(store, "stores")
    if not (folder / MANIFEST).exists():
        raise InputError(
            f"--store: there is no prepared store at {folder}; the path of a folder has a / in it"
        )
    from data_prep.integrity import problems, unlisted_files

    damaged = problems(folder, print)
    for problem in damaged:
        print(f"error: {problem}", file=sys.stderr)
    for name in unlisted_files(folder):
        print(f"{name} does not belong to the store")
    if damaged:
        print(
            f"error: {len(damaged)} damaged: delete these files and prepare the store again, which "
            "then makes only them (without its manifest, all)",
            file=sys.stderr,
        )
        return BAD_INPUT
    print(f"{folder} is whole")
    return GOOD


if __name__ == "__main__":
    sys.exit(main())
