"""What a machine lacks ends no work: letters, a reader, a terminal, a home, a drawing backend."""

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from data_prep.common.console import steady_output
from data_prep.store import Store

ROOT = Path(__file__).parents[1]
PRINTS = """
import sys
from data_prep.common.console import steady_output
steady_output()
print("\\u03b2 1.00 \\u00b2 \\u2013 M\\u00fcller \\udcff", flush=True)
print("\\u00d7", file=sys.stderr)
print("end" * 40_000, flush=True)
open(sys.argv[1], "w").close()
"""
ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "no locale": {"LC_ALL": "xx_YY", "LANG": ""},
}


def python(
    *words: object, stdout: int | io.IOBase = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """A Python process from the repository's root."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        stdout=stdout,  # type: ignore[arg-type]
        stderr=subprocess.PIPE,
        env=os.environ | environment,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_letters_that_a_terminal_lacks_are_escaped(tmp_path: Path, encoding: str) -> None:
    done = python("-c", PRINTS, tmp_path / "done", **ENCODINGS[encoding])
    assert (done.returncode, b"Error" in done.stderr) == (0, False)
    assert b" 1.00 " in done.stdout and b"\\udcff" in done.stdout
    assert (tmp_path / "done").exists()
    if encoding == "ascii":
        assert b"\\u03b2 1.00" in done.stdout and b"M\\xfcller" in done.stdout


def test_a_reader_that_leaves_takes_nothing_with_it(tmp_path: Path) -> None:
    """As `| head -1` does."""
    read, write = os.pipe()
    os.close(read)
    done = python("-c", PRINTS, tmp_path / "done", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "×\n".encode())
    assert (tmp_path / "done").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("package", ["data_prep", "pipeline"])
def test_a_log_on_a_full_disk_ends_no_work_and_is_told(tmp_path: Path, package: str) -> None:
    with open("/dev/full", "wb") as full:
        python("-c", PRINTS, tmp_path / "done", stdout=full)
        command = python("-m", package, "--help", stdout=full)
    assert (tmp_path / "done").exists()
    assert command.returncode == 4 and b"No space left" in command.stderr


def test_nor_does_a_closed_output(tmp_path: Path) -> None:
    words = [sys.executable, "-c", PRINTS, str(tmp_path / "done")]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *words], cwd=ROOT, check=False)
    assert done.returncode == 0 and (tmp_path / "done").exists()


BAR = """
from data_prep.common.console import steady_output
from data_prep.common.progress import Reporter
steady_output()
with Reporter() as reporter:
    for n in range(3):
        reporter.update(n / 3, "β 1.00")
print("after")
"""


@pytest.mark.parametrize("columns", ["8", "1", "160"])
def test_a_progress_bar_fits_every_terminal(columns: str) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS=columns, PYTHONIOENCODING="ascii")
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", BAR])
    said = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:
            break
        if not part:
            break
        said += part
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert b"after" in said and b"Traceback" not in said
    assert "β".encode() not in said


def test_a_stream_of_someone_else_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's, or a test's: only its errors are changed, where it has such."""
    ours = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ours)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    steady_output()
    assert sys.stdout is ours and ours.errors == "backslashreplace"


def test_no_command_imports_matplotlib_before_its_backend_is_chosen() -> None:
    """matplotlib reads MPLBACKEND when it is imported, and never again."""
    code = (
        "import sys, pipeline.__main__, data_prep.__main__; sys.exit('matplotlib' in sys.modules)"
    )
    assert python("-c", code).returncode == 0


BROKEN = {
    "MPLBACKEND": "module://nowhere.backend_inline",
    "PYTHONIOENCODING": "ascii",
    "HOME": "/dev/null",
    "COLUMNS": "1",
}
LEVELS = [{"side": 4, "channels": 2}, {"side": 8, "channels": 1}]
CONFIG = {
    "prepare": {"size": 32},
    "data": {"store": "tiny"},
    "model": {
        "levels": LEVELS, "width": 4, "max_width": 8, "residual_blocks": 0, "kernel_hidden": 8,
    },
    "likelihood": {"kernel_size": 5, "warmup_epochs": 1, "residual_steps": 2},
    "training": {"epochs": 2, "batch_size": 6, "rate_warmup_steps": 2, "threads": 1},
    "prior": {"images": 40},
    "evaluation": {"samples": 4, "max_slices": 2},
    "compare": {"terms": ["blur", "gaussian"], "seeds": [0], "rate_targets": [0], "jobs": 1},
    "tracking": {"enabled": False},
}  # fmt: skip


@pytest.mark.slow
def test_every_command_that_draws_does_so_on_a_poor_machine(
    work: Path, store_writer: Callable[..., Store]
) -> None:
    """A notebook's backend, no UTF-8, no home, a narrow terminal: all at once."""
    store_writer(work, slices=4)
    config = work / "tiny.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    package, store = ["--package", "tiny"], ["--store", "tiny"]
    few = ["--steps", "2", "--samples", "0", "--slices", "1", "--tv_weight", "0.01",
           "--wavelet_weight", "0.01", "--output", work / "restored"]  # fmt: skip
    commands: list[tuple[list[object], str]] = [
        (["train", "--config", config], "runs/tiny/config.yaml"),
        (["evaluate", "--run", "tiny"], "runs/tiny/evaluation/figures/samples.png"),
        (["export", "--run", "tiny", "--register", "false"], "packages/tiny/metadata.json"),
        (["reconstruct", "--operator", "image", *package, *store, *few],
         "restored/p04/comparison.png"),
        (["lesions", *package, *store, "--slices", "1", "--repeats", "1", "--diameters", "[9]",
          "--contrasts", "[0.4]", "--output", work / "lesions"], "lesions/curves.png"),
        (["compare", "--config", config], "comparisons/tiny/table.md"),
    ]  # fmt: skip
    for words, file in commands:
        done = python("-m", "pipeline", *words, **BROKEN)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), (words, done)
        assert (work / file).exists(), (words, done.stdout)
