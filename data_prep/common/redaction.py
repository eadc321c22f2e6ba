"""Text without passwords: of addresses, and of error messages that repeat an address."""

import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

HIDDEN = "***"

# Variables of the environment that hold an address, and those that hold a secret itself.
ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN",
           "AWS_SECRET_ACCESS_KEY")  # fmt: skip

# A shorter word is part of too many others to be replaced wherever it stands.
SHORTEST = 4

USER = re.compile(r"(?<=://)[^/\s'\"]*@")


def shown_address(address: str) -> str:
    """An address as it may be printed: without user, password, query and fragment.

    >>> shown_address("http://me:secret@host:5000/path?token=abc")
    'http://***@host:5000/path?***'
    """
    scheme, mark, rest = address.partition("://")
    if not mark or rest.startswith("/"):  # a file's name may hold any sign
        return address
    user, at, host = rest.rpartition("@")  # a password may hold any sign, if wrongly
    place = re.split("[?#]", host, maxsplit=1)[0]
    rest = f"{host[len(place)]}{HIDDEN}" if len(host) > len(place) else ""
    return f"{scheme}://{HIDDEN + at if user else ''}{place}{rest}"


def without_secrets(text: str) -> str:
    """A text without the passwords and tokens of this process's environment, and of any address."""
    for word in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(word, HIDDEN)
    return USER.sub(f"{HIDDEN}@", text)


def _secrets() -> Iterator[str]:
    words = [os.environ.get(name, "") for name in SECRETS]
    for name in ADDRESSES:
        rest = os.environ.get(name, "").partition("://")[2]
        user, _, host = rest.rpartition("@")
        name_and_password = user.partition(":")
        # A user without a password is a token, in place of both.
        words += [user, name_and_password[2] or name_and_password[0]]
        for part in re.split(r"[?#&;]", host)[1:]:
            words += [part, part.partition("=")[2]]
    for word in words:
        for form in {word, unquote(word)}:
            if len(form) >= SHORTEST:
                yield form
