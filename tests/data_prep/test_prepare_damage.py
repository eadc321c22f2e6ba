"""The corruption set through the whole stage: every damage is found, each with its own reason."""

import errno
from pathlib import Path

import numpy as np
import pytest
from small_volumes import LAYOUT, brain, write_cohort, write_nifti
from test_prepare_stage import configured
from test_prepare_verify import DAMAGES

from data_prep.__main__ import main
from data_prep.store import Store
from data_prep.volume import verify

SOUND = ["100", "101"]


def test_the_corruption_set_is_found_whole_and_costs_nobody_else(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """10 cuts, 40 flipped bytes at random places of the packed stream and its checksum, and all
    other damage, in one run."""
    root = write_cohort(tmp_path / "raw", SOUND)
    expected: dict[str, set[str]] = {}

    def sick(name: str, *reasons: str) -> Path:
        expected[name] = set(reasons)
        return write_nifti(root / LAYOUT.replace("{subject}", name), brain())

    for number, damage in enumerate(DAMAGES):
        damage(sick(f"d{number:02}", DAMAGES[damage]))
    for number in range(10):
        path = sick(f"cut{number}", "truncated")
        content = path.read_bytes()
        path.write_bytes(content[: 1 + number * (len(content) - 2) // 9])
    generator = np.random.default_rng(0)
    for number in range(40):
        path = sick(f"flip{number:02}", "corrupt", "truncated")
        content = bytearray(path.read_bytes())
        content[generator.integers(10, len(content))] ^= 0xFF
        path.write_bytes(content)
    refused = sick("locked", "no_permission")
    opened = verify._opened

    def locked(path: Path) -> object:
        # The system's own refusal is tested in test_prepare_verify: root is refused nothing.
        if path == refused:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path)

    monkeypatch.setattr(verify, "_opened", locked)
    arguments = configured(tmp_path, root)
    assert main(arguments) == 3
    store = Store.open(work / "stores" / "study")
    assert [entry.subject for entry in store.entries] == SOUND
    found = {q.subject: q.reason for q in store.quarantined}
    assert found.keys() == expected.keys()
    assert {n: r for n, r in found.items() if r not in expected[n]} == {}
    # Cut-off is claimed of a whole file only where its own last four bytes say so.
    flips = [reason for name, reason in found.items() if name.startswith("flip")]
    assert flips.count("corrupt") >= 39
    capsys.readouterr()

    # Once mended, a file that changed is read again, and so is one whose refusal leaves no trace.
    write_nifti(root / LAYOUT.replace("{subject}", "cut3"), brain())
    monkeypatch.setattr(verify, "_opened", opened)
    assert main(arguments) == 3
    again = Store.open(work / "stores" / "study")
    assert {e.subject for e in again.entries} == {*SOUND, "cut3", "locked"}
