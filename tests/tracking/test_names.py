"""Names of metrics in MLflow, the code's version, and who sees a browser: pure functions."""

import pytest

from data_prep.common.provenance import ROOT, code_version
from pipeline.evaluation.report import headline_names
from pipeline.metrics.catalogue import HEADLINE, RECONSTRUCTION, SAMPLES
from pipeline.tracking.runs import epoch_name, score_name
from pipeline.tracking.ui import has_desktop

KEYS = [metric.key for metric in (*RECONSTRUCTION, *SAMPLES)]


@pytest.mark.parametrize("split", ["test", "validation", "all"])
def test_every_score_has_a_name_of_its_own_in_a_group(split: str) -> None:
    keys = [*KEYS, "training_kid_coarse", "calibration_crps", "calibration_fitted_crps"]
    assert len({score_name(key) for key in keys}) == len(keys)
    assert {score_name(key, split).split("/")[0] for key in KEYS} == {split, "samples"}


@pytest.mark.parametrize("folder", ["evaluation-validation", "evaluation-other"])
def test_scores_of_other_subjects_have_a_group_of_their_own(folder: str) -> None:
    means = {metric.key: 1.0 for metric in HEADLINE}
    own, others = (headline_names(means, name) for name in ("evaluation", folder))
    assert not own.keys() & others.keys() and "test/psnr" in own and f"{folder}/psnr" in others
    assert epoch_name("validation_psnr") not in others
    assert headline_names({"psnr": None, "ssim": 0.5}, "evaluation") == {"test/ssim": 0.5}


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({}, "linux", False),
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({}, "darwin", True),
        ({"DISPLAY": "localhost:10", "SSH_CONNECTION": "a b"}, "linux", False),
        ({"CI": "true"}, "win32", False),
    ],
)
def test_a_browser_is_opened_where_somebody_sees_it(
    environment: dict[str, str], platform: str, expected: bool
) -> None:
    assert has_desktop(environment, platform) is expected


def test_the_code_is_known_by_its_commit_in_a_checkout() -> None:
    code = code_version()
    if (ROOT / ".git").exists():
        assert len(code["commit"]) == 12 and code["clean"] in ("true", "false")
