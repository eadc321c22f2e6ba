"""As many people as HCP has: what they cost in memory is their lines in the manifest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_volumes import LAYOUT, brain, write_nifti
from test_prepare_stage import configured

from data_prep.store import Store

MANY = 1113

MEASURE = """
import json, resource, sys
from data_prep.__main__ import main
code = main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([code, peak]))
"""


def peak_of(arguments: list[str], work: Path) -> int:
    """Peak memory, bytes, of a process that prepares without others."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"WORK": str(work)},
        cwd=Path(__file__).parents[2],
        check=False,
    )
    code, peak = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return int(peak)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pixels_of_subjects(tmp_path: Path, work: Path) -> None:
    root = tmp_path / "raw"
    volume = brain((24, 28, 24))
    for n in range(MANY):
        volume[12, 14, 11:13] = 200 + n % 700, 200 + n // 700  # nobody's scan is another's
        write_nifti(root / LAYOUT.replace("{subject}", f"{100000 + n}"), volume)
    (root / "subjects.csv").write_text(
        "Subject,Family_ID\n" + "".join(f"{100000 + n},f{n // 3}\n" for n in range(MANY))
    )
    arguments = configured(
        tmp_path, root, size=64, spacing_mm=0.5, slice_spacing_mm=1.0, subjects_table="subjects.csv"
    )
    few = tmp_path / "few"
    for n in range(100):
        folder = few / f"{100000 + n}"
        folder.parent.mkdir(exist_ok=True)
        folder.symlink_to(root / folder.name)
    small = peak_of([*arguments, f"--prepare.root={few}", "--prepare.subjects_table="], few / "w")
    large = peak_of(arguments, work)
    store = Store.open(work / "stores/study")
    pixels = sum(entry.shard_bytes for entry in store.entries)
    assert len(store.entries) == MANY
    assert pixels > 80e6
    # A subject's line, digests and numbers for the report included, is a few kilobytes.
    assert large - small < 15_000 * (MANY - 100)
    assert large - small < pixels / 4
    splits = {s: store.subjects(s) for s in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == MANY
    assert 0.6 < len(splits["train"]) / MANY < 0.8
    families = [{entry.family for entry in entries} for entries in splits.values()]
    assert not families[0] & families[1] | families[0] & families[2] | families[1] & families[2]
