"""What interrupts a preparation, and what must be left of it: kills, a full disk, a second one."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_volumes import LAYOUT, brain, write_cohort, write_nifti
from test_prepare_stage import configured

from data_prep.__main__ import main
from data_prep.common.files import locked
from data_prep.integrity import problems
from data_prep.store import Store

NAMES = [str(n) for n in range(301, 313)]
HERE = Path(__file__).parent


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = write_cohort(tmp_path / "raw", NAMES)
    write_nifti(root / LAYOUT.replace("{subject}", "bad"), brain()).write_bytes(b"")
    return root


def accepting(folder: Path, root: Path, **keys: object) -> list[str]:
    return configured(folder, root, max_quarantined=1, **keys)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below, hidden ones too."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def command(arguments: list[str], work: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "data_prep", *arguments],
        cwd=HERE.parents[1],
        env=os.environ | {"WORK": str(work)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kills", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_after_many_kills_the_store_is_what_an_uninterrupted_run_makes(
    root: Path, tmp_path: Path, work: Path, kills: int
) -> None:
    arguments = accepting(tmp_path, root)
    assert main(arguments) == 0
    done = subprocess.run(
        [sys.executable, HERE / "killing.py", arguments[1], tmp_path / "killed", str(kills), "1"],
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == kills
    assert content(tmp_path / "killed/stores/study") == content(work / "stores/study")


def workers_of(process: int) -> set[int]:
    """Processes whose parent it is, by /proc."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(")")[2].split()[1]) == process:
                found.add(int(status.parent.name))
        except OSError:
            continue
    return found


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_do_not_outlive_a_killed_preparation(
    root: Path, tmp_path: Path, work: Path
) -> None:
    """The real command with two workers, killed while they work, four times over."""
    arguments = accepting(tmp_path, root, workers=2)
    for name in NAMES:  # large enough for the kill to fall on them
        write_nifti(root / LAYOUT.replace("{subject}", name), brain((120, 140, 110), int(name)))
    for wait in (0.2, 0.8, 1.4, 2.0):
        shutil.rmtree(work / "stores", ignore_errors=True)
        process = command(arguments, work)
        deadline = time.monotonic() + 120
        while len(workers_of(process.pid)) < 2 and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        time.sleep(wait)
        workers = workers_of(process.pid)
        process.kill()
        process.communicate()
        assert len(workers) >= 2
        deadline = time.monotonic() + 20
        while not all(map(gone, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert all(map(gone, workers))
    whole = tmp_path / "whole"
    for folder in (work, whole):
        process = command(arguments, folder)
        assert process.wait() == 0, process.communicate()
    assert content(work / "stores/study") == content(whole / "stores/study")


@contextmanager
def full_disk() -> Iterator[None]:
    """A limit on the size of a file stands for it: a write fails in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_the_same_command_goes_on(
    root: Path,
    tmp_path: Path,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = accepting(tmp_path, root)
    with full_disk():
        assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    left = content(work / "stores/study")
    assert "manifest.json" not in left
    assert not [name for name in left if name.endswith(".tmp")]
    assert main(arguments) == 0
    whole = tmp_path / "whole"
    monkeypatch.setenv("WORK", str(whole))
    assert main(arguments) == 0
    assert content(work / "stores/study") == content(whole / "stores/study")


def test_a_disk_that_fills_when_a_finished_store_is_redone_costs_no_sound_shard(
    root: Path, tmp_path: Path, work: Path
) -> None:
    arguments = accepting(tmp_path, root)
    assert main(arguments) == 0
    before = Store.open(work / "stores/study")
    write_nifti(root / LAYOUT.replace("{subject}", "305"), brain(seed=9))
    with full_disk():
        assert main(arguments) == 2
    assert Store.open(work / "stores/study") == before and not problems(before.path, print)
    assert main(arguments) == 0
    assert problems(work / "stores/study", print) == []


def test_a_store_is_prepared_by_one_process_at_a_time(
    root: Path, tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(work / "stores" / ".study.lock"):
        assert main(accepting(tmp_path, root)) == 2
    told = capsys.readouterr().err
    assert "another process is preparing this store" in told
    assert told.count("\n") == 1
    assert not (work / "stores/study").exists()
    assert main(accepting(tmp_path, root)) == 0


def test_an_interrupt_is_told_and_keeps_what_is_done(
    root: Path, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_prep.sources import volumes

    transform: Callable[..., object] = volumes.transform
    count = iter(range(100))

    def interrupted(job: object) -> object:
        if next(count) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return transform(job)

    monkeypatch.setattr(volumes, "transform", interrupted)
    arguments = accepting(tmp_path, root)
    # Of a shell's background jobs it is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(arguments) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    partial = Store.open(work / "stores/study", "manifest.partial.json")
    assert len(partial.entries) >= 4
    stamps = {e.shard: (partial.path / e.shard).stat().st_mtime_ns for e in partial.entries}
    assert main(arguments) == 0
    assert all((partial.path / shard).stat().st_mtime_ns == t for shard, t in stamps.items())
