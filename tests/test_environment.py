"""A machine without a user, a home or a temporary folder: libraries get them below WORK."""

import getpass
import os
import pwd
import tempfile
from pathlib import Path

import pytest

from data_prep.common.files import usable_environment

VARIABLES = ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "TMPDIR", "TEMP", "TMP")


def test_what_is_missing_lies_below_work(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # restored after the test, whatever is set in it
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [])
    usable_environment()
    assert work in Path.home().parents and getpass.getuser() == str(os.getuid())
    with tempfile.TemporaryDirectory() as place:
        assert work in Path(place).parents


def test_what_is_there_is_kept(work: Path) -> None:
    before = (dict(os.environ), tempfile.gettempdir())
    usable_environment()
    assert (dict(os.environ), tempfile.gettempdir()) == before and not work.exists()
