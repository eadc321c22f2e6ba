"""What interrupts a preparation, and what must be left of it: kills, a full disk, a second one;
and what as many subjects as HCP's cost in memory."""

import json
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
from small_volumes import LAYOUT, brain, write_nifti
from studies import NAMES, Study, content

from data_prep.common.files import locked
from data_prep.integrity import problems
from data_prep.store import Store

HERE = Path(__file__).parent
MANY = 1113


def command(work: Path, *arguments: str) -> "subprocess.Popen[str]":
    """The real command, in the current folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "data_prep", "--config", "study.yaml", *arguments],
        env=os.environ | {"WORK": str(work), "PYTHONPATH": str(HERE.parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kills", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_after_many_kills_the_store_is_what_an_uninterrupted_run_makes(
    study: Study, kills: int
) -> None:
    write_nifti(study.root / LAYOUT.replace("{subject}", "bad"), brain()).write_bytes(b"")
    study.run(max_quarantined=1)
    done = subprocess.run(
        [sys.executable, HERE / "killing.py", "study.yaml", "killed", str(kills), "1"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == kills
    assert content(Path("killed/stores/study")) == content(study.folder)


def process(number: int) -> list[str]:
    """State and parent of a process, by /proc; nothing where it is gone."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return []


def workers_of(parent: int) -> set[int]:
    numbers = [int(p.name) for p in Path("/proc").glob("[0-9]*")]
    return {n for n in numbers if process(n)[1:] == [str(parent)]}


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_do_not_outlive_a_killed_preparation(study: Study, work: Path) -> None:
    """The real command with two workers, killed while they work, four times over."""
    for name in NAMES:  # large enough for the kill to fall on them
        volume = brain((120, 140, 110), int(name))
        write_nifti(study.root / LAYOUT.replace("{subject}", name), volume)
    for pause in (0.2, 0.8, 1.4, 2.0):
        shutil.rmtree(work / "stores", ignore_errors=True)
        running = command(work, "--prepare.workers=2")
        assert wait_for(lambda pid=running.pid: len(workers_of(pid)) >= 2, 120)  # type: ignore[misc]
        time.sleep(pause)
        workers = workers_of(running.pid)
        running.kill()
        running.communicate()
        assert len(workers) >= 2
        assert wait_for(lambda of=workers: all(process(n)[:1] in ([], ["Z"]) for n in of), 20)  # type: ignore[misc]
    for folder in (work, Path("whole")):
        assert command(folder, "--prepare.workers=2").wait() == 0
    assert content(study.folder) == content(Path("whole/stores/study"))


@contextmanager
def full_disk() -> Iterator[None]:
    """A limit on the size of a file stands for it: a write fails in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_costs_no_sound_shard_and_the_same_command_goes_on(
    study: Study,
) -> None:
    before = content(study.folder)
    shutil.rmtree(study.folder)
    with full_disk():
        assert study.run(code=2).splitlines()[-1].startswith("error: ")
    left = content(study.folder)
    assert "manifest.json" not in left
    assert not [name for name in left if name.endswith(".tmp")]
    study.run()
    assert content(study.folder) == before
    write_nifti(study.root / LAYOUT.replace("{subject}", "205"), brain(seed=9))
    with full_disk():
        study.run(code=2)
    assert study.store.entries and not problems(study.folder, print)
    study.run()
    assert not problems(study.folder, print)


def test_a_store_is_prepared_by_one_process_at_a_time(study: Study, work: Path) -> None:
    with locked(work / "stores" / ".study.lock"):
        assert "another process is preparing this store" in study.run("--prepare.size=64", code=2)
    study.run("--prepare.size=64")


def test_an_interrupt_is_told_and_keeps_what_is_done(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_prep.sources import volumes

    transform: Callable[..., object] = volumes.transform
    count = iter(range(100))

    def interrupted(job: object) -> object:
        if next(count) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return transform(job)

    shutil.rmtree(study.folder)
    # Of a shell's background jobs it is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(volumes, "transform", interrupted)
        try:
            study.run(code=130)
        finally:
            signal.signal(signal.SIGINT, before)
    partial = Store.open(study.folder, "manifest.partial.json")
    assert len(partial.entries) >= 3
    stamps = study.times()
    study.run()
    shards = [f"slices/{entry.subject}" for entry in partial.entries]
    assert all(study.times()[shard] == stamps[shard] for shard in shards)


MEASURE = """
import json, resource, sys
from data_prep.__main__ import main
code = main(["--config", "study.yaml", *sys.argv[1:]])
print(json.dumps([code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pixels_of_subjects(study: Study) -> None:
    volume = brain((24, 28, 24))
    names = [f"{100000 + n}" for n in range(MANY)]
    for n, name in enumerate(names):
        volume[12, 14, 11:13] = 200 + n % 700, 200 + n // 700  # nobody's scan is another's
        write_nifti(Path("many") / LAYOUT.replace("{subject}", name), volume)
    Path("few").mkdir()
    for name in names[:100]:
        Path("few", name).symlink_to(Path("many", name).absolute())
    rows = "".join(f"{name},{name[:-1]}\n" for name in names)
    Path("many/subjects.csv").write_text(f"Subject,Family_ID\n{rows}")
    peaks = []
    for root, more in (("few", []), ("many", ["--prepare.subjects_table=subjects.csv"])):
        keys = [f"--prepare.{key}" for key in ("size=64", "spacing_mm=0.5", "slice_spacing_mm=1.0")]
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *keys, f"--prepare.root={root}", *more],
            capture_output=True,
            text=True,
            env=os.environ | {"WORK": f"{root}/work", "PYTHONPATH": str(HERE.parents[1])},
            check=False,
        )
        code, peak = json.loads(done.stdout.splitlines()[-1])
        assert code == 0, done.stderr
        peaks.append(peak)
    store = Store.open("many/work/stores/study")
    pixels = sum(entry.shard_bytes for entry in store.entries)
    assert len(store.entries) == MANY and pixels > 80e6
    # A subject's line, digests and numbers for the report included, is a few kilobytes.
    assert peaks[1] - peaks[0] < min(15_000 * (MANY - 100), pixels / 4)
    splits = [store.subjects(s) for s in ("train", "validation", "test")]
    assert 0.6 < len(splits[0]) / MANY < 0.8
    families = [{entry.family for entry in entries} for entries in splits]
    assert sum(map(len, families)) == len(set.union(*families))
