"""verify: a single flipped byte anywhere in a store is found."""

import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from small_volumes import shard_of, write_cohort
from test_prepare_stage import configured

from data_prep.__main__ import main
from data_prep.store import Store


@pytest.fixture
def folder(tmp_path: Path, work: Path) -> Path:
    root = write_cohort(tmp_path / "raw", ["1", "2", "3"])
    assert main(configured(tmp_path, root)) == 0
    return work / "stores/study"


def verify(store: str | Path) -> int:
    return main(["verify", "--store", str(store)])


def test_a_store_is_whole_by_name_and_by_path(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for store in ("study", folder):
        capsys.readouterr()
        assert verify(store) == 0
        assert capsys.readouterr().out.endswith(f"{folder} is whole\n")


def test_a_flipped_byte_anywhere_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        places = {0, len(content) - 1, *(draw.randrange(len(content)) for _ in range(60))}
        for place in places:
            damaged = bytearray(content)
            damaged[place] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            capsys.readouterr()
            assert verify(folder) == 2, (path, place)
            assert str(path) in capsys.readouterr().err
        path.write_bytes(content)
    assert verify(folder) == 0


def test_white_space_in_the_manifest_is_found_and_mended(folder: Path, tmp_path: Path) -> None:
    path = folder / "manifest.json"
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    Store.open(folder)  # of the same meaning: of use
    assert verify(folder) == 2
    assert main(["--config", str(tmp_path / "study.yaml")]) == 0
    assert path.read_bytes() == content


def test_a_manifest_edited_by_hand_is_refused_by_readers(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"spacing_mm": 1.0', '"spacing_mm": 2.0'))
    with pytest.raises(Exception, match="was changed after it was written"):
        Store.open(folder)


def test_every_damaged_file_is_named_and_strangers_are_mentioned(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, cut = shard_of(folder, "1"), shard_of(folder, "2")
    gone.unlink()
    cut.write_bytes(b"short")
    (folder / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert verify(folder) == 2
    told = capsys.readouterr()
    assert f"{gone} is missing" in told.err
    assert f"{cut} has the wrong length" in told.err
    assert "2 damaged: delete these files" in told.err
    assert "notes.txt does not belong to the store" in told.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--store", "nowhere"], "no prepared store at"),
        (["--store"], "--store"),
        ([], "verify needs --store"),
        (["--store", "study", "--quick"], "unknown option --quick"),
    ],
)
def test_a_wrong_call_is_one_line(
    folder: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["verify", *arguments]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1


def test_what_verify_asks_for_mends_the_store(folder: Path, tmp_path: Path) -> None:
    shard = shard_of(folder, "2")
    sound = shard.read_bytes()
    shard.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    stamp = shard_of(folder, "1").stat().st_mtime_ns
    assert verify(folder) == 2
    shard.unlink()
    assert main(["--config", str(tmp_path / "study.yaml")]) == 0
    assert shard.read_bytes() == sound
    assert shard_of(folder, "1").stat().st_mtime_ns == stamp
    assert verify(folder) == 0


def stamps(paths: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """What shows that a file was written again."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


@pytest.mark.parametrize("place", [0, 100, -1])
def test_check_finds_and_mends_a_shard_that_is_damaged_at_its_right_length(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: int
) -> None:
    shard = shard_of(folder, "2")
    sound, others = shard.read_bytes(), stamps(folder.glob("slices/[13].*.npy"))
    damaged = bytearray(sound)
    damaged[place] ^= 1
    shard.write_bytes(damaged)
    arguments = ["--config", str(tmp_path / "study.yaml")]
    capsys.readouterr()
    assert main(arguments) == 0  # by name and length alone all is well
    assert "nothing to do" in capsys.readouterr().out and shard.read_bytes() == damaged
    assert main([*arguments, "--prepare.check", "--prepare.dry_run"]) == 0
    assert "to prepare, its shard is damaged: 1 subject: 2\n" in capsys.readouterr().out
    assert main([*arguments, "--prepare.check", "true"]) == 0
    assert "to prepare, its shard is damaged: 1 subject: 2\n" in capsys.readouterr().out
    assert shard.read_bytes() == sound
    assert stamps(folder.glob("slices/[13].*.npy")) == others
    assert verify(folder) == 0


def test_check_of_a_whole_store_changes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(folder.rglob("*"))
    capsys.readouterr()
    assert main(["--config", str(tmp_path / "study.yaml"), "--prepare.check"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert stamps(folder.rglob("*")) == before
