"""Ctrl-C: the same command goes on with what was finished, and what is said of it is true."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.store import Store
from pipeline.__main__ import COMMANDS, main
from pipeline.analysis.anomaly import lesions
from pipeline.analysis.inverse import problem, study
from pipeline.analysis.results import PARTS, begin

pytestmark = pytest.mark.usefixtures("tiny")
WEIGHTS = ["--tv_weight", "0.004", "--wavelet_weight", "0.004"]


@pytest.fixture
def words(tiny_store: Store) -> list[str]:
    return ["reconstruct", "--package", "tiny", "--store", f"{tiny_store.path}", "--slices", "2",
            "--acceleration", "3", "--latent_steps", "5", "--image_steps", "4",
            "--samples", "0"]  # fmt: skip


class Stops:
    """A function that counts its calls; the `at`-th is Ctrl-C."""

    def __init__(self, function: Callable[..., Any], at: int = 0) -> None:
        self.function, self.at, self.calls = function, at, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.function(*arguments, **named)


def _run(words: list[str], output: Path) -> int:
    return main([*words, "--output", str(output)])


def _contents(output: Path) -> dict[str, bytes]:
    """All files but those whose text names the folder."""
    files = [path for path in output.rglob("*") if path.is_file()]
    return {str(p.relative_to(output)): p.read_bytes() for p in files if p.suffix != ".json"}


def test_a_study_goes_on_with_the_subjects_that_are_left(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    solve = study.solve_case
    monkeypatch.setattr(study, "solve_case", Stops(solve, at=2))
    assert _run([*words, *WEIGHTS], out) == 130
    (said,) = capsys.readouterr().err.splitlines()
    assert "1 finished part kept" in said and "the same command goes on" in said
    monkeypatch.setattr(study, "solve_case", counted := Stops(solve))
    assert _run([*words, *WEIGHTS], out) == 0
    assert counted.calls == 1 and "goes on with" in capsys.readouterr().out
    assert _run([*words, *WEIGHTS], whole) == 0
    assert _contents(out) == _contents(whole)
    assert not (out / PARTS).exists()


def test_a_weight_that_was_tried_is_not_tried_again(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    solve = problem.solve_classical
    monkeypatch.setattr(problem, "solve_classical", counted := Stops(solve))
    assert _run(words, whole) == 0
    all_calls = counted.calls
    monkeypatch.setattr(problem, "solve_classical", Stops(solve, at=4))
    assert _run(words, out) == 130
    kept = len(list((out / PARTS).iterdir()))
    monkeypatch.setattr(problem, "solve_classical", counted := Stops(solve))
    assert _run(words, out) == 0
    # The tiny store has one validation subject: a call a weight.
    assert kept == 3 and counted.calls == all_calls - 3
    scores = [json.loads((place / "scores.json").read_text()) for place in (out, whole)]
    assert scores[0]["weights"] == scores[1]["weights"]
    assert _contents(out) == _contents(whole)


def test_other_inputs_start_anew(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = study.solve_case
    monkeypatch.setattr(study, "solve_case", Stops(solve, at=2))
    assert _run([*words, *WEIGHTS], tmp_path) == 130
    monkeypatch.setattr(study, "solve_case", counted := Stops(solve))
    assert _run([*words, *WEIGHTS, "--seed", "1"], tmp_path) == 0
    assert counted.calls == 2
    assert not (tmp_path / PARTS).exists()


def test_lesions_go_on_with_the_subjects_that_are_left(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["lesions", "--package", "tiny", "--store", f"{tiny_store.path}", "--slices", "2",
             "--diameters", "[12]", "--contrasts", "[-0.9,0.05]"]  # fmt: skip
    out, whole = tmp_path / "out", tmp_path / "whole"
    insert = lesions.insert
    monkeypatch.setattr(lesions, "insert", Stops(insert, at=3))  # the second subject's first
    assert _run(words, out) == 130
    monkeypatch.setattr(lesions, "insert", counted := Stops(insert))
    assert _run(words, out) == 0
    assert counted.calls == 2
    assert _run(words, whole) == 0
    assert _contents(out) == _contents(whole)


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    assert begin(tmp_path, [], {"a": 1}).part("x", lambda: {"value": 1.5}) == {"value": 1.5}
    (path,) = (tmp_path / PARTS).iterdir()
    assert begin(tmp_path, [], {"a": 1}).part("x", lambda: 2) == {"value": 1.5}
    path.write_bytes(path.read_bytes()[:-40])
    assert begin(tmp_path, [], {"a": 1}).part("x", lambda: 2) == 2
    path.write_bytes(b"")
    assert begin(tmp_path, [], {"a": 1}).part("x", lambda: 3) == 3


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("train", "the same command continues from the last checkpoint, if there is one"),
        ("compare", "what is trained or scored is kept"),
        ("evaluate", "nothing was saved"),
        ("export", "nothing was saved"),
        ("anomaly", "nothing was saved"),
        ("restore", "nothing was saved"),
    ],
)
def test_an_interruption_tells_what_the_same_command_does(
    command: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, command, stopped)
    assert main([command]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("interrupted: ") and told in line
