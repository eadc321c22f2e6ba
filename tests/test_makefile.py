"""The Makefile: its help is complete, and its commands are those of the README."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = {
    "help", "demo", "prepare", "train", "evaluate", "export", "compare", "anomaly", "lesions",
    "reconstruct", "bench", "ui", "test", "test-all", "lint", "docs", "docs-reference",
    "wheel", "clean",
}  # fmt: skip

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def _make(*words: str) -> str:
    """What make prints. `-o` leaves the environment of these tests alone."""
    command = ["make", "--no-print-directory", "-o", ".venv/.installed", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_help_names_every_target() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE.replace("\\\n", ""), re.MULTILINE)
    assert set(phony.split()) == TARGETS
    assert set(re.findall(r"^ +make (\S+) +\S", _make(), re.MULTILINE)) == TARGETS


def test_help_has_three_groups() -> None:
    groups = re.findall(r"^(\S.*)\n  make \S", _make(), re.MULTILINE)
    assert groups == ["From images to scores", "With a trained decoder", "Development"]
    menu = [line for line in _make().splitlines() if line.startswith("  make ")]
    assert max(map(len, menu)) <= 100


def test_demo_is_the_three_stages_of_its_configuration() -> None:
    said = _make("-n", "demo", "CONFIG=configs/hcp.yaml")
    lines = [line for line in said.splitlines() if " -m " in line and "--config" in line]
    assert len(lines) == 3 and all("configs/demo.yaml" in line for line in lines)


def test_stages_run_in_order_even_in_parallel() -> None:
    said = _make("-n", "-j8", "prepare", "train", "evaluate", "ARGS=--training.epochs 2")
    lines = [line.split(" -m ")[1] for line in said.splitlines()]
    assert [line.split(" --config")[0] for line in lines] == [
        "data_prep",
        "pipeline train",
        "pipeline evaluate",
    ]
    assert all(line.split()[-2:] == ["--training.epochs", "2"] for line in lines)


def test_names_reach_the_programs() -> None:
    said = _make("-n", "train", "CONFIG=configs/hcp.yaml", "RUN=a", "STORE=b").split()
    assert said[-6:] == ["--config", '"configs/hcp.yaml"', "--prepare.name", '"b"', "--run", '"a"']


def test_a_named_run_is_scored_with_its_own_configuration() -> None:
    assert "--config" not in _make("-n", "evaluate", "RUN=a")
    assert "--config" in _make("-n", "evaluate", "RUN=a", "CONFIG=configs/hcp.yaml")


def test_the_run_that_is_exported_is_named_or_that_of_the_configuration() -> None:
    assert _make("-n", "export", "RUN=a", "ARGS=--onnx true").split()[-4:] == [
        "--run", '"a"', "--onnx", "true",
    ]  # fmt: skip
    assert _make("-n", "export", "CONFIG=configs/hcp.yaml").split()[-1] == '"hcp"'


@pytest.mark.parametrize("name", ["Makefile", "constraints.txt", "pyproject.toml", ".ci/run"])
def test_no_address_and_no_path_of_a_machine(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(
        r"index-url|find-links|trusted-host|@ |(?<!sqlite:/)/(work|home|root|Users)/", text
    )
    assert not re.search(r"https?://[\w]", text.replace("http://127.0.0.1", ""))


def test_constraints_are_bare_exact_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert lines == sorted(lines, key=str.lower)


def test_ci_runs_the_tests() -> None:
    path = ROOT / ".ci/run"
    assert path.stat().st_mode & 0o111
    assert path.read_text(encoding="utf-8").rstrip().endswith("make test")
