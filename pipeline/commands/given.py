"""Files, stores and runs that a command line names: are they there?

Looked up in the words themselves, before a command's module and torch are imported, which takes
seconds. Whether they hold what they should is seen later.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from data_prep import Store, StoreError
from pipeline.errors import InputError
from pipeline.files import existing_run, find_folder

# A command's options that name a file.
FILES = {"evaluate": ("reconstructions",)}


def check_given(command: str, argv: Sequence[str]) -> None:
    """Raise InputError for what is named and is not there; nothing where help is asked for.

    command: one that takes options of its own; argv: the words after it.
    """
    given = _values(argv)
    if "help" in given or "-h" in argv:
        return
    for name in FILES.get(command, ()):
        word = given.get(name, "").strip()
        if word and not Path(word).exists():
            raise InputError(f"--{name}: {word} is not there")
    if command == "evaluate" and (store := given.get("store", "")):
        try:
            Store.open(find_folder(store, "stores"))
        except StoreError as error:
            raise InputError(str(error)) from error
    if command == "export" and (run := given.get("run", "")):
        existing_run(run)


def _values(argv: Sequence[str]) -> dict[str, str]:
    """What follows each --option, as --option VALUE or --option=VALUE; the last one counts."""
    found = {}
    for word, following in pairwise([*argv, ""]):
        if word.startswith("--"):
            name, separator, value = word[2:].partition("=")
            found[name] = value if separator else "" if following.startswith("--") else following
    return found
