"""Progress: a bar on a terminal, plain lines elsewhere, the time left in both."""

import os
import re
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from data_prep.common import progress
from data_prep.common.progress import Reporter

NOTE = "distortion -5000, rate 321 nats, kernel loss 9.50, 240 images/s"


def _report(reporter: Reporter) -> None:
    with reporter:
        for done in (0.25, 0.5):
            reporter.update(done, f"epoch {40 * done:.1f}/40  {NOTE}", 200 * done)


def test_a_log_gets_plain_lines_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    _report(Reporter(seconds=0.0))
    _report(Reporter(shown=False, seconds=0.0))  # says nothing
    first, second = capsys.readouterr().out.splitlines()
    assert first == f" 25%  ? left  epoch 10.0/40  {NOTE}"  # one point has no pace
    assert second == f" 50%  0:01:40 left  epoch 20.0/40  {NOTE}"


def test_a_log_gets_a_line_in_so_many_seconds_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(101))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    reporter = Reporter(seconds=10.0)
    for step in range(50):  # the clock is asked twice for an update
        reporter.update(step / 50, "")
    assert len(capsys.readouterr().out.splitlines()) == 10


@pytest.mark.parametrize("columns", [160, 80])
def test_a_terminal_gets_the_figures_and_a_bar_where_there_is_room(
    columns: int, on_a_terminal: Callable[[Callable[[], None]], str]
) -> None:
    def child() -> None:
        os.environ.update(TERM="xterm", COLUMNS=str(columns))
        with open(1, "w", encoding="utf-8", closefd=False) as sys.stdout:
            with Reporter() as reporter:
                reporter.update(0.0, "")
            print("—")  # a bar waits for its label: nothing before this
            _report(Reporter())

    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", on_a_terminal(child))
    assert said.startswith("—") and ("━" in said) == (columns == 160)
    assert "50%" in said and "0:01:40 left" in said and "distortion -5000, rate 321 nats" in said
    if columns == 80:
        assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", said))
