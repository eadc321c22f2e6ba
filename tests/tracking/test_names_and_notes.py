"""What runs are called and how they are described: laws of pure functions."""

import pytest

from data_prep.common.provenance import ROOT, code_version
from data_prep.common.redaction import shown_address
from pipeline.commands.ui import has_desktop
from pipeline.evaluation.scores import headline_names
from pipeline.metrics.catalogue import DENSITY, HEADLINE, RECONSTRUCTION, SAMPLES
from pipeline.tracking.names import epoch_name, score_name
from pipeline.tracking.notes import LONGEST_NOTE, table, with_section

KEYS = [metric.key for metric in (*RECONSTRUCTION, *SAMPLES, *DENSITY)]


def test_no_two_metrics_share_a_name() -> None:
    keys = [*KEYS, "training_kid_coarse", "calibration_crps", "calibration_fitted_crps"]
    assert len({score_name(key) for key in keys}) == len(keys)


@pytest.mark.parametrize("split", ["test", "validation", "all"])
def test_every_score_is_in_a_group(split: str) -> None:
    assert {score_name(key, split).split("/")[0] for key in KEYS} == {split, "samples"}


def test_an_epochs_metrics_are_of_training_or_of_validation() -> None:
    assert epoch_name("rate_side_8") == "train/rate_side_8"
    assert epoch_name("validation_rate") == "validation/rate"


@pytest.mark.parametrize("folder", ["evaluation-validation", "evaluation-other"])
def test_scores_of_other_subjects_have_a_group_of_their_own(folder: str) -> None:
    means = {metric.key: 1.0 for metric in HEADLINE}
    own, others = (headline_names(means, name) for name in ("evaluation", folder))
    assert not own.keys() & others.keys()
    assert epoch_name("validation_psnr") not in others and "test/psnr" in own
    assert f"{folder}/psnr" in others


def test_what_has_no_mean_is_left_out() -> None:
    assert headline_names({"psnr": None, "ssim": 0.5}, "evaluation") == {"test/ssim": 0.5}


def test_a_section_written_twice_is_there_once_and_own_words_stay() -> None:
    note = with_section("my own words", "Training", "begun")
    note = with_section(note, "Scores", "30 dB")
    again = with_section(note, "Training", "done")
    assert again.count("### Training") == 1 and "begun" not in again
    assert again.startswith("my own words") and again.index("done") < again.index("30 dB")
    assert with_section(again, "Training", "done") == again


def test_a_section_that_is_first_stays_first() -> None:
    note = with_section(with_section("", "Training", "done"), "Scores", "30 dB", first=True)
    assert note.index("30 dB") < note.index("done")
    note = with_section(with_section(note, "Training", "again"), "Scores", "31 dB", first=True)
    assert note.startswith("### Scores\n\n31 dB") and note.count("###") == 2


def test_a_section_is_not_taken_for_one_that_begins_alike() -> None:
    note = with_section("", "Scores: test of a", "one")
    note = with_section(note, "Scores", "two")
    assert "one" in note and "two" in note


def test_a_long_note_is_cut_at_a_line_and_says_so() -> None:
    note = with_section("", "Leaderboard", "0123456789\n" * 2000)
    assert len(note) <= LONGEST_NOTE
    assert "(cut" in note and "0123456789\n\n…" in note


def test_a_table_has_as_many_bars_in_every_line() -> None:
    lines = table(["a", "b"], [["1", "2"], ["3", "4"]]).splitlines()
    assert [line.count("|") for line in lines] == [3] * 4


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({}, "linux", False),
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({}, "darwin", True),
        ({"DISPLAY": "localhost:10", "SSH_CONNECTION": "a b"}, "linux", False),
        ({"SSH_TTY": "/dev/pts/0"}, "darwin", False),
        ({"CI": "true"}, "win32", False),
    ],
)
def test_a_browser_is_opened_where_somebody_sees_it(
    environment: dict[str, str], platform: str, expected: bool
) -> None:
    assert has_desktop(environment, platform) is expected


@pytest.mark.parametrize("uri", ["http://me:secret@host:1/a", "postgresql://me:secret@host/db"])
def test_no_password_is_shown(uri: str) -> None:
    assert "secret" not in shown_address(uri) and "host" in shown_address(uri)


def test_the_path_of_a_file_is_shown_as_it_is() -> None:
    assert shown_address("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"


def test_the_code_is_known_by_its_commit_in_a_checkout() -> None:
    found = code_version()
    if (ROOT / ".git").exists():
        assert len(found["commit"]) == 12 and found["clean"] in ("true", "false")
