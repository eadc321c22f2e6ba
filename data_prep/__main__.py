"""Command line: python -m data_prep [verify] --config configs/demo.yaml [--prepare.root DIR] …"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from data_prep.common.console import complete, steady_output
from data_prep.common.errors import InputError
from data_prep.common.files import find_folder, work_folder
from data_prep.common.invocation import program
from data_prep.common.layers import read_layers
from data_prep.common.switches import switch_keys, switched
from data_prep.common.wording import absent_package, one_line
from data_prep.config import PLAIN_NAME, PrepareConfig

# Sections of the same file that belong to the other package; passed over, never checked here.
OTHER_SECTIONS = (
    "data", "model", "prior", "likelihood", "training", "evaluation", "compare", "tracking",
)  # fmt: skip

GOOD, BAD_INPUT, QUARANTINED, INTERRUPTED = 0, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the store that the configuration describes.

    Returns the exit code: 0 all good; 2 bad input, in one line; 3 the store is there, but more
    subjects than prepare.max_quarantined are not usable; 4 all good, but output was lost; 130
    interrupted.
    """
    steady_output()
    return complete(_main(argv))


def _main(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["verify"]:
            return _verify(arguments[1:])
        config = configuration(arguments)
        if config is None:
            return GOOD
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
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except ModuleNotFoundError as error:
        line = absent_package(error, program("data_prep"))
        if line is None:
            raise
        # Preparation has a key of its own for what the pipeline calls tracking.enabled.
        print(f"error: {line}".replace("tracking.enabled", "prepare.track"), file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        # The file system's own refusals: no permission, no space left.
        print(f"error: {InputError(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return QUARANTINED if len(prepared.store.quarantined) > config.max_quarantined else GOOD


def _verify(arguments: list[str]) -> int:
    """Compare every byte of a store with its digests; 0 where it is whole, else 2."""
    from data_prep.integrity import problems, unlisted_files
    from data_prep.store import MANIFEST

    parser = argparse.ArgumentParser(
        prog=f"{program('data_prep')} verify",
        description="Read a prepared store and compare every file with the manifest's digests.",
        exit_on_error=False,
    )
    parser.add_argument("--store", help="its folder, or its name under WORK/stores")
    try:
        options, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(f"verify: {error}") from None
    except SystemExit:  # --help
        return GOOD
    if unknown:
        raise InputError(f"verify: unknown option {unknown[0]}")
    if not options.store:
        raise InputError("verify needs --store, the name or folder of a store")
    folder = find_folder(options.store, "stores")
    if not (folder / MANIFEST).exists():
        raise InputError(
            f"--store: there is no prepared store at {folder}; the path of a folder has a / in it"
        )
    found = problems(folder, print)
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    for name in unlisted_files(folder):
        print(f"{name} does not belong to the store")
    if found:
        print(
            f"error: {len(found)} damaged: delete these files and prepare the store again, which "
            "then makes only them (without its manifest, all)",
            file=sys.stderr,
        )
        return BAD_INPUT
    print(f"{folder} is whole")
    return GOOD


def configuration(arguments: list[str]) -> PrepareConfig | None:
    """The `prepare` section from the files and overrides in `arguments`; None: help was printed.

    Raises:
        InputError: naming the file, section or key that is wrong.
    """
    from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

    parser = ArgumentParser(
        prog=program("data_prep"),
        usage=f"{program('data_prep')} --config CONFIG.yaml [--KEY VALUE ...]",
        description="Raw images become a prepared store, WORK/stores/NAME (WORK in the "
        "environment; work where it is not set). Keys that are not of `prepare` are ignored. To "
        f"check a store's files: {program('data_prep')} verify --store NAME.",
        epilog=f"example: {program('data_prep')} --config configs/hcp64.yaml --prepare.root "
        "/data/HCP_1200",
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file, such as configs/*")
    parser.add_argument("--prepare", type=PrepareConfig, default=PrepareConfig())
    files: list[str] = []
    try:
        parsed = parser.parse_args(list(_own(arguments, files)))
        config: PrepareConfig = parser.instantiate(parsed).prepare
    except SystemExit as end:  # --help and --print_config
        if end.code:
            raise InputError("the command line could not be read") from None
        return None
    except (ArgumentError, ValueError, TypeError, KeyError) as error:
        raise InputError(one_line(error, [action.dest for action in parser._actions])) from None
    if not config.name and files:
        stem = Path(files[-1]).stem
        if not PLAIN_NAME.fullmatch(stem):
            raise InputError(f"prepare.name is not set and '{stem}' cannot name a store: set it")
        config = replace(config, name=stem)
    return config


def _own(arguments: list[str], files: list[str]) -> Iterator[str]:
    """`arguments` without what belongs to the pipeline, each --config replaced by its own part.

    The names of the configuration files are appended to `files`.
    """
    rest = switched(arguments, switch_keys(PrepareConfig, "--prepare."))
    while rest:
        argument = rest.pop(0)
        key, equals, value = argument.partition("=")
        section = key.removeprefix("--").split(".")[0] if key.startswith("--") else ""
        if section not in (*OTHER_SECTIONS, "run", "restart", "config"):
            yield argument
            continue
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        if section == "config":
            if not value:
                raise InputError("--config needs the name of a file")
            files.append(value)
            yield f"--config={_prepare_section(Path(value))}"


def _prepare_section(path: Path) -> str:
    """The part of a YAML file that is ours, as text that the parser reads in the file's stead."""
    content = read_layers(path)
    for section in content:
        if section not in (*OTHER_SECTIONS, "prepare"):
            sections = ", ".join(("prepare", *OTHER_SECTIONS))
            raise InputError(f"{path}: unknown section '{section}'; the sections are {sections}")
    if "prepare" not in content:
        return "{}"
    for key, value in (("prepare", content["prepare"]), *_nested(content["prepare"])):
        if not isinstance(value, dict):
            raise InputError(f"{path}: {key} must hold keys of its own, got {value!r}")
    return yaml.safe_dump({"prepare": content["prepare"]})


def _nested(section: Any) -> list[tuple[str, Any]]:
    """The sections within `prepare`, as far as the file names them."""
    keys = ("split", "cohort", "plausibility") if isinstance(section, dict) else ()
    return [(f"prepare.{key}", section[key]) for key in keys if key in section]


if __name__ == "__main__":
    sys.exit(main())
