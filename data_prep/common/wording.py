"""Plain words: errors of a command line or configuration file in one line; numbers of things."""

import re
from argparse import ArgumentError
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

# jsonargparse's words, in the order in which they are replaced, and what a user reads instead.
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text",
         "NoneType": "null"}  # fmt: skip
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
    (r"<class '(\w+)'>", lambda found: KINDS.get(found[1], found[1])),
)


def quantity(number: int, noun: str) -> str:
    """A number of things, in words.

    Example:
        >>> quantity(1, "subject"), quantity(2, "family")
        ('1 subject', '2 families')
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"


# Where the name of a package differs from that of its module.
DISTRIBUTIONS = {"PIL": "pillow", "pywt": "pywavelets", "skimage": "scikit-image", "yaml": "PyYAML"}
OWN = ("data_prep", "pipeline")


def absent_package(error: ModuleNotFoundError, command: str) -> str | None:
    """What to install for a command, in one line; None where one of our own modules is missing.

    Example:
        >>> absent_package(ModuleNotFoundError(name="skimage.measure"), "sharp-vae evaluate")
        'sharp-vae evaluate needs scikit-image, which is not installed: pip install scikit-image'
    """
    module = (error.name or "").partition(".")[0]
    if not module or module in OWN:
        return None
    name = DISTRIBUTIONS.get(module, module)
    line = f"{command} needs {name}, which is not installed: pip install {name}"
    return f"{line}, or go without: --tracking.enabled false" if module == "mlflow" else line


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
