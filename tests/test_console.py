"""What a machine lacks ends no work: letters, a reader, a terminal, a home, a drawing backend."""

import getpass
import io
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny import TINY

from data_prep.common.console import steady_output
from data_prep.common.files import usable_environment
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


def test_a_reader_that_leaves_or_a_closed_output_takes_nothing_with_it(tmp_path: Path) -> None:
    """As `| head -1` does, and `>&-`."""
    read, write = os.pipe()
    os.close(read)
    done = python("-c", PRINTS, tmp_path / "left", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "×\n".encode())
    words = [sys.executable, "-c", PRINTS, str(tmp_path / "closed")]
    subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *words], cwd=ROOT, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"left", "closed"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_log_on_a_full_disk_ends_no_work_and_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        python("-c", PRINTS, tmp_path / "done", stdout=full)
        helped = [python("-m", name, "--help", stdout=full) for name in ("data_prep", "pipeline")]
    assert (tmp_path / "done").exists()
    assert all(done.returncode == 4 and b"No space left" in done.stderr for done in helped)


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
def test_a_progress_bar_fits_every_terminal(
    columns: str, on_a_terminal: Callable[[Callable[[], None]], str]
) -> None:
    def child() -> None:
        os.environ.update(TERM="xterm", COLUMNS=columns, PYTHONIOENCODING="ascii")
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", BAR])

    said = on_a_terminal(child)
    assert "after" in said and "Traceback" not in said and "β" not in said


def test_a_stream_of_someone_else_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's, or a test's: only its errors are changed, where it has such."""
    ours = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ours)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    steady_output()
    assert sys.stdout is ours and ours.errors == "backslashreplace"


def test_no_command_imports_matplotlib_before_its_backend_is_chosen() -> None:
    """matplotlib reads MPLBACKEND when it is imported, and never again."""
    code = "import sys, pipeline.cli, data_prep.__main__; sys.exit('matplotlib' in sys.modules)"
    assert python("-c", code).returncode == 0


def test_what_a_machine_lacks_lies_below_work(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container under a number that nobody has: no home, no user's name, no temporary folder."""
    before = (dict(os.environ), tempfile.gettempdir())
    usable_environment()
    assert (dict(os.environ), tempfile.gettempdir()) == before and not work.exists()

    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, "")  # restored after the test, whatever is set in it
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [])
    usable_environment()
    assert work in Path.home().parents and getpass.getuser() == str(os.getuid())
    with tempfile.TemporaryDirectory() as place:
        assert work in Path(place).parents


BROKEN = {
    "MPLBACKEND": "module://nowhere.backend_inline",
    "PYTHONIOENCODING": "ascii",
    "HOME": "/dev/null",
    "COLUMNS": "1",
}


@pytest.mark.slow
def test_every_command_that_draws_does_so_on_a_poor_machine(
    work: Path, store_writer: Callable[..., Store]
) -> None:
    """A notebook's backend, no UTF-8, no home, a narrow terminal: all at once."""
    store_writer(work, slices=4)
    config = work / "tiny.yaml"
    compared = {"terms": ["blur", "gaussian"], "seeds": [0], "rate_targets": [0], "jobs": 1}
    config.write_text(yaml.safe_dump(TINY | {"tracking": {"enabled": False}, "compare": compared}))
    few = f"--steps 2 --samples 0 --slices 1 --tv_weight 1 --wavelet_weight 1 --output {work}/out"
    found = f"--slices 1 --repeats 1 --diameters [9] --contrasts [0.4] --output {work}/lesions"
    for words, file in {
        f"train --config {config}": "runs/tiny/config.yaml",
        "evaluate --run tiny": "runs/tiny/evaluation/figures/samples.png",
        "export --run tiny --register false": "packages/tiny/metadata.json",
        f"reconstruct --operator image --package tiny --store tiny {few}": "out/p04/comparison.png",
        f"lesions --package tiny --store tiny {found}": "lesions/curves.png",
        f"compare --config {config}": "comparisons/tiny/table.md",
    }.items():
        done = python("-m", "pipeline", *words.split(), **BROKEN)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), (words, done)
        assert (work / file).exists(), (words, done.stdout)
