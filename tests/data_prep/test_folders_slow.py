"""Real folders and machines, as bug reports tell of them, through the real command line.

Makes small inputs, runs `python -m data_prep` on them and prints a table: run it with

    python -m pytest -q -s -m slow tests/data_prep/test_folders_slow.py
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import pytest
import yaml
from small_volumes import LAYOUT, brain, shard_of, write_cohort, write_nifti
from test_prepare_names import BIDS
from test_prepare_persons import FREESURFER, one_scan_twice

ROOT = Path(__file__).parents[2]
TABLE: list[tuple[str, int, str]] = []


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Prints what was said, once all have run."""
    yield
    print("\n| row | exit code | what it said |\n|---|---|---|")
    for row, code, said in TABLE:
        print(f"| {row} | {code} | {said} |")


def prepare(
    folder: Path, root: Path, *words: str, environment: dict[str, str] | None = None, **keys: object
) -> tuple[int, str]:
    """Exit code and output of a preparation in a process of its own."""
    section = {"source": "hcp", "root": str(root), "size": 32, "spacing_mm": 1.0, "workers": 1}
    config = folder / "study.yaml"
    config.write_text(yaml.safe_dump({"prepare": section | {"track": False} | keys}))
    done = subprocess.run(
        [sys.executable, "-m", "data_prep", "--config", str(config), *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, check=False,
        env=os.environ | {"WORK": str(folder / "work")} | (environment or {}),
    )  # fmt: skip
    return done.returncode, done.stdout.decode("utf-8", "backslashreplace")


def note(row: str, code: int, said: str, *words: str) -> None:
    """A row of the table: the lines of the output that hold one of the words."""
    lines = [line.strip() for line in said.splitlines() if any(word in line for word in words)]
    TABLE.append((row, code, "; ".join(lines)))
    assert lines, said


@pytest.mark.slow
def test_names(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "raw", ["pre+post", "a b", "Müller", "01"], BIDS)
    (root / "sub-05/anat").mkdir(parents=True)
    code, said = prepare(tmp_path, root, template=BIDS)
    note("3 names", code, said, "subjects of", "no image")
    assert code == 0 and said.count("subjects of") == 3 and "no image: sub-05" in said
    assert len(list((tmp_path / "work/stores/study/slices").iterdir())) == 4


@pytest.mark.slow
def test_families(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "raw", ["1", "2", "3"])
    (root / "people.csv").write_text("Subject,Family_ID\n1,n/a\n2,n/a\n3,nan\n")
    code, said = prepare(tmp_path, root, subjects_table="people.csv")
    note("4 families", code, said, "read as not known")
    assert code == 0


@pytest.mark.slow
def test_copies(tmp_path: Path) -> None:
    one_scan_twice(tmp_path / "raw", "compressed anew")
    code, said = prepare(tmp_path, tmp_path / "raw")
    note("5 one scan, two names", code, said, "one scan")
    assert code == 0


@pytest.mark.slow
def test_freesurfer(tmp_path: Path) -> None:
    root = tmp_path / "subjects"
    for seed, name in enumerate(["fsaverage", "1004", "1004_1.long.1004", "1004_2.long.1004"]):
        path = root / name / "mri/brain.mgz"
        path.parent.mkdir(parents=True)
        nib.save(nib.MGHImage(brain(seed=seed), None), path)
    (root / "1005/mri").mkdir(parents=True)
    code, said = prepare(tmp_path, root, template=FREESURFER)
    note("13 FreeSurfer", code, said, "left out", "no image", "2 subjects of 1 family")
    assert code == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_closed_folder(tmp_path: Path) -> None:
    """As another user, since root may enter every folder."""
    root = write_cohort(tmp_path / "raw", ["1", "2"])
    (root / "2").chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root enters every folder")
    code, said = prepare(tmp_path, root)
    (root / "2").chmod(0o700)
    note("closed folder", code, said, "no_permission")
    assert code == 3


@pytest.mark.slow
def test_a_damaged_shard(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "raw", ["1", "2"])
    assert prepare(tmp_path, root)[0] == 0
    shard = shard_of(tmp_path / "work/stores/study", "1")
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, said = prepare(tmp_path, root, "--prepare.check")
    note("damaged shard", code, said, "is damaged")
    assert code == 0 and shard.read_bytes() == content


@pytest.mark.slow
def test_a_formula(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "raw", ["=1+1", "-5"], "{subject}.nii.gz")
    code, _ = prepare(tmp_path, root, template="{subject}.nii.gz")
    rows = (tmp_path / "work/stores/study/report/subjects.csv").read_text()
    note("formula", code, rows.replace(",", " "), "'=1+1")
    assert code == 0 and ",-5," in rows


@pytest.mark.slow
def test_a_server_that_is_gone(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "raw", ["1"])
    began = time.monotonic()
    uri = {"MLFLOW_TRACKING_URI": "http://me:pa55w0rd@127.0.0.1:9"}
    code, said = prepare(tmp_path, root, environment=uri, track=True)
    note(f"6 password, {time.monotonic() - began:.0f} s", code, said, "error:")
    assert code == 2 and "pa55w0rd" not in said


@pytest.mark.slow
def test_a_poor_machine(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "raw", ["Müller"])
    poor = {
        "MPLBACKEND": "module://nowhere.inline", "PYTHONIOENCODING": "ascii", "LC_ALL": "C",
        "HOME": "/dev/null", "COLUMNS": "1",
    }  # fmt: skip
    write_nifti(root / LAYOUT.replace("{subject}", "Maß"), brain()).write_bytes(b"")
    code, said = prepare(tmp_path, root, environment=poor)
    note("7, 8 backend, ASCII, no home", code, said, "Ma")
    assert code == 3 and "Ma\\xdf: empty" in said
