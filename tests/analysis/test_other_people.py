"""Equal names are the same people to an analysis, unless it is told that they are not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.store import Store
from pipeline.analysis.packages import unseen_subjects
from pipeline.decoder_package import DecoderPackage
from pipeline.errors import InputError


def test_equal_names_are_refused_and_taken_where_they_are_others(
    trained: DecoderPackage,
    tmp_path: Path,
    store_writer: Callable[..., Store],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = store_writer(tmp_path, "other", seed=7)
    with pytest.raises(InputError, match=r"3 of 6 .* --other_people true"):
        unseen_subjects(other, trained, "all")
    assert len(unseen_subjects(other, trained, "all", other_people=True)) == 6
    assert "file digests (SHA-256) were compared" in capsys.readouterr().out


def test_the_same_file_is_refused_whatever_is_said(
    trained: DecoderPackage, tmp_path: Path, store_writer: Callable[..., Store]
) -> None:
    copy = store_writer(tmp_path, "copy", prefix="q")  # the tiny store's scans, renamed
    with pytest.raises(InputError, match=r"3 of 6 .*\(q00, q01, q02\)"):
        unseen_subjects(copy, trained, "all", other_people=True)
