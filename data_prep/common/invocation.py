"""How the user starts this program's commands, for messages that say what to do next."""

import sys
from pathlib import Path

CONSOLE_SCRIPTS = ("sharp-vae", "sharp-vae-prepare")
MAKEFILE = Path(__file__).parents[2] / "Makefile"


def uses_make() -> bool:
    """Whether this is a checkout with its Makefile, and no console script was started."""
    return MAKEFILE.is_file() and Path(sys.argv[0]).stem not in CONSOLE_SCRIPTS


def program(package: str) -> str:
    """What runs a package's command line, in the form that works where it was started.

    The installed `sharp-vae`, `.venv/bin/python -m pipeline` in a checkout whose `make` made the
    environment, else `python -m pipeline`.
    """
    script = "sharp-vae" if package == "pipeline" else "sharp-vae-prepare"
    return script if Path(sys.argv[0]).stem == script else f"{_python()} -m {package}"


def _python() -> str:
    """This interpreter as it is typed: nobody needs to activate the checkout's environment."""
    environment = MAKEFILE.parent / ".venv"
    try:
        ours = Path.cwd().samefile(MAKEFILE.parent) and environment.samefile(sys.prefix)
    except OSError:  # there is no such environment, or the current folder is gone
        ours = False
    return ".venv/bin/python" if ours else "python"


def command(name: str, run: str = "", makes: str = "") -> str:
    """A command as the user types it: `make train`, or `sharp-vae train` where it is installed.

    Args:
        name: prepare, train, evaluate, export, …: a target of the Makefile.
        run: shown as the name of the run, if given.
        makes: the store or run that the command is to make: its configuration is shown.
    """
    start = f"make {name}" if uses_make() else f"sharp-vae {name}"
    if start == "sharp-vae prepare":
        start = "sharp-vae-prepare"
    if makes:
        start += _configured(makes)
    return f"{start} {run_option()}{run}" if run else start


def _configured(name: str) -> str:
    """The configuration by which a store or run gets its name, where one of that name is here."""
    path = Path("configs") / f"{name}.yaml"
    if uses_make():
        return "" if name == "demo" else f" CONFIG={path if path.is_file() else '…'}"
    return f" --config {path if path.is_file() else '…'}"


def run_option() -> str:
    """What names a run, up to the name: `RUN=` or `--run `."""
    return "RUN=" if uses_make() else "--run "
