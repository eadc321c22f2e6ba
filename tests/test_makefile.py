"""The Makefile: its help is complete, and its commands are those of the README."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def _make(*words: str) -> str:
    """What make prints. `-o` leaves the environment of these tests alone."""
    command = ["make", "--no-print-directory", "-o", ".venv/.installed", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_help_names_every_target_in_three_groups() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE.replace("\\\n", ""), re.MULTILINE)
    menu = _make()
    assert set(phony.split()) == set(re.findall(r"^ +make (\S+) +\S", menu, re.MULTILINE))
    groups = re.findall(r"^(\S.*)\n  make \S", menu, re.MULTILINE)
    assert groups == ["From images to scores", "With a trained decoder", "Development"]


@pytest.mark.parametrize(
    ("words", "commands"),
    [
        (
            "-j8 prepare train evaluate ARGS='--training.epochs 2'",
            [
                'data_prep --config "configs/demo.yaml" --training.epochs 2',
                'pipeline train --config "configs/demo.yaml" --training.epochs 2',
                'pipeline evaluate --config "configs/demo.yaml" --training.epochs 2',
            ],
        ),
        (
            "train CONFIG=configs/hcp.yaml RUN=a STORE=b",
            ['pipeline train --config "configs/hcp.yaml" --prepare.name "b" --run "a"'],
        ),
        ("evaluate RUN=a", ['pipeline evaluate --run "a"']),
        (
            "evaluate RUN=a CONFIG=configs/hcp.yaml",
            ['pipeline evaluate --config "configs/hcp.yaml" --run "a"'],
        ),
        ("export RUN=a ARGS='--onnx true'", ['pipeline export --run "a" --onnx true']),
        ("export CONFIG=configs/hcp.yaml", ['pipeline export --run "hcp"']),
    ],
)
def test_names_reach_the_programs_in_order(words: str, commands: list[str]) -> None:
    arguments = re.findall(r"(?:[^\s']|'[^']*')+", words)
    said = _make("-n", *(word.replace("'", "") for word in arguments))
    lines = [line.partition(" -m ")[2] for line in said.splitlines()]
    assert [" ".join(line.split()) for line in lines] == commands


def test_demo_is_the_three_stages_of_its_configuration() -> None:
    said = _make("-n", "demo", "CONFIG=configs/hcp.yaml")
    lines = [line for line in said.splitlines() if " -m " in line and "--config" in line]
    assert len(lines) == 3 and all("configs/demo.yaml" in line for line in lines)


@pytest.mark.parametrize("name", ["Makefile", "constraints.txt", "pyproject.toml", ".ci/run"])
def test_no_address_and_no_path_of_a_machine(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8").replace("http://127.0.0.1", "")
    assert not re.search(
        r"index-url|find-links|trusted-host|@ |(?<!sqlite:/)/(work|home|root|Users)/|https?://\w",
        text,
    )


def test_constraints_are_bare_exact_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert lines == sorted(lines, key=str.lower)


def test_ci_runs_the_tests() -> None:
    path = ROOT / ".ci/run"
    assert path.stat().st_mode & 0o111
    assert path.read_text(encoding="utf-8").rstrip().endswith("make test")
