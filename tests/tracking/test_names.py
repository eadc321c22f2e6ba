"""Names of metrics and tables in MLflow, and where a browser is opened: pure functions."""

import pytest

from data_prep.common.provenance import ROOT, code_version
from pipeline.evaluation.scores import headline_names
from pipeline.metrics.catalogue import DENSITY, HEADLINE, RECONSTRUCTION, SAMPLES
from pipeline.tracking.names import epoch_name, score_name, table
from pipeline.tracking.ui import has_desktop

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


def test_the_code_is_known_by_its_commit_in_a_checkout() -> None:
    found = code_version()
    if (ROOT / ".git").exists():
        assert len(found["commit"]) == 12 and found["clean"] in ("true", "false")
