"""Progress: a bar on a terminal, plain lines elsewhere, the time left in both."""

import os
import pty
import re
import sys
from collections.abc import Callable

import pytest

from data_prep.common import progress
from data_prep.common.progress import Reporter
from pipeline.training.description import summary

METRICS = {"distortion": -5000.0, "rate": 321.0, "kernel_loss": 9.5, "images_per_second": 240.0}


def _nothing(reporter: Reporter) -> None:
    with reporter:
        reporter.update(0.0, "")


def _report(reporter: Reporter) -> None:
    with reporter:
        for done in (0.25, 0.5):
            reporter.update(done, f"epoch {40 * done:.1f}/40  {summary(METRICS)}", 200 * done)


def test_a_log_gets_plain_lines_with_losses_rate_and_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _report(Reporter(seconds=0.0))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(" 25%  ? left  epoch 10.0/40")  # one point has no pace
    assert second.startswith(" 50%  0:01:40 left  epoch 20.0/40")
    for word in ("distortion -5000", "rate 321 nats", "kernel loss 9.50", "240 images/s"):
        assert word in second
    assert "\x1b" not in first + second


def test_a_log_gets_a_line_in_so_many_seconds_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    reporter = Reporter(seconds=10.0)
    for step in range(100):
        now = float(step)
        reporter.update(step / 100, "")
    assert len(capsys.readouterr().out.splitlines()) == 9


def test_a_silent_one_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    _report(Reporter(shown=False, seconds=0.0))
    assert capsys.readouterr().out == ""


def _on_a_terminal(work: Callable[[Reporter], None], columns: int) -> str:
    """What a terminal of so many columns is sent, without its control sequences."""
    child, terminal = pty.fork()
    if child == 0:  # its standard output is the terminal's other end
        os.environ.update(TERM="xterm", COLUMNS=str(columns))
        with open(1, "w", encoding="utf-8", closefd=False) as sys.stdout:
            work(Reporter())
        os._exit(0)
    said = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not part:
            break
        said += part
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode())


def test_a_bar_waits_for_its_label() -> None:
    assert _on_a_terminal(_nothing, 160) == ""


def test_a_terminal_gets_a_bar_with_losses_rate_and_time_left() -> None:
    plain = _on_a_terminal(_report, 160)
    assert "━" in plain
    for word in ("50%", "0:01:40 left", "distortion -5000", "rate 321 nats", "240 images/s"):
        assert word in plain


def test_a_terminal_of_eighty_columns_gets_the_figures_whole_and_no_bar() -> None:
    plain = _on_a_terminal(_report, 80)
    assert "━" not in plain
    assert " 50%  0:01:40 left epoch 20.0/40  distortion -5000, rate 321 nats" in plain
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", plain))
