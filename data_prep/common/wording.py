"""Words of messages: numbers of things, and commands as the user of this computer types them."""

import sys
from pathlib import Path

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def quantity(number: int, noun: str) -> str:
    """A number of things, in words.

    Example:
        >>> quantity(1, "subject"), quantity(2, "family")
        ('1 subject', '2 families')
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"


def uses_make() -> bool:
    """True in a checkout with its Makefile where no console script was started."""
    return MAKEFILE.is_file() and not Path(sys.argv[0]).stem.startswith("sharp-vae")


def program(package: str) -> str:
    """The start of a package's command line, in the form that works where it was started.

    The installed `sharp-vae`, `.venv/bin/python -m pipeline` in a checkout whose `make` made the
    environment, else `python -m pipeline`.
    """
    script = Path(sys.argv[0]).stem
    if script == "sharp-vae-prepare" or (script == "sharp-vae" and package == "pipeline"):
        return script
    if script == "sharp-vae":
        return "sharp-vae prepare"
    environment = MAKEFILE.parent / ".venv"
    try:
        ours = Path.cwd().samefile(MAKEFILE.parent) and environment.samefile(sys.prefix)
    except OSError:  # there is no such environment, or the current folder is gone
        ours = False
    return f"{'.venv/bin/python' if ours else 'python'} -m {package}"


def command(name: str, run: str = "", makes: str = "") -> str:
    """A command as the user types it: `make train`, or `sharp-vae train` where it is installed.

    Args:
        name: prepare, train, evaluate, export, …: a target of the Makefile.
        run: shown as the name of the run, if given.
        makes: the store or run that the command is to make: its configuration is shown.
    """
    start = f"{'make' if uses_make() else 'sharp-vae'} {name}"
    if makes and not (uses_make() and makes == "demo"):
        path = Path("configs") / f"{makes}.yaml"
        start += " CONFIG=" if uses_make() else " --config "
        start += f"{path if path.is_file() else '…'}"
    return f"{start} {run_option()}{run}" if run else start


def run_option() -> str:
    """The beginning of what names a run: `RUN=` or `--run `."""
    return "RUN=" if uses_make() else "--run "
