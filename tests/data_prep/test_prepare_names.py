"""Nobody is lost for a name's sake: what a template matches is prepared or named."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_volumes import LAYOUT, brain, write_cohort, write_nifti
from test_prepare_stage import configured, run_and_list

from data_prep.__main__ import main
from data_prep.common.errors import InputError
from data_prep.common.names import as_path, as_text, printable, shard_name
from data_prep.config import PLAIN_NAME, PrepareConfig
from data_prep.sources import matching
from data_prep.sources.path_template import discover
from data_prep.store import Store

BIDS = "sub-{subject}/anat/sub-{subject}_T1w.nii.gz"


def found(root: Path, template: str = BIDS, **keys: str) -> list[str]:
    config = PrepareConfig(name="study", source="hcp", root=str(root), template=template, **keys)
    return [subject.subject for subject in discover(config)[0]]


def touch(root: Path, names: list[str], template: str = BIDS) -> None:
    for name in names:
        path = root / template.replace("{subject}", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_signs_blanks_and_umlauts_are_prepared_and_their_shards_have_safe_names(
    tmp_path: Path, work: Path
) -> None:
    names = ["pre+post", "M üller", "50%", "=1+1", "a,b", "0042"]
    root = write_cohort(tmp_path / "raw", names, BIDS)
    store = run_and_list(configured(tmp_path, root, template=BIDS), work)
    assert [entry.subject for entry in store.entries] == sorted(names)
    shards = {entry.subject: entry.shard for entry in store.entries}
    assert shards["0042"].startswith("slices/0042.")
    assert shards["pre+post"].startswith("slices/pre%2Bpost.")
    assert all(PLAIN_NAME.fullmatch(s[7:].replace("%", "")) for s in shards.values())
    assert main(["verify", "--store", "study"]) == 0


def test_a_table_finds_names_whatever_unicode_form_it_writes_them_in(tmp_path: Path) -> None:
    touch(tmp_path, ["Mu\u0308ller", "02"])  # as macOS has it: u and a separate diaeresis
    (tmp_path / "people.csv").write_text("Subject,Family_ID\nM\u00fcller,a\n 02 ,a\n", "utf-8")
    assert found(tmp_path, subjects_table="people.csv") == ["02", "M\u00fcller"]


def test_a_table_that_is_no_utf8_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, ["Müller"])
    (tmp_path / "people.csv").write_bytes("Subject,Family_ID\nMüller,a\n".encode("latin-1"))
    with pytest.raises(InputError, match="save it as UTF-8"):
        found(tmp_path, subjects_table="people.csv")


def test_a_name_that_is_no_text_is_prepared_under_one_that_is(tmp_path: Path, work: Path) -> None:
    root = tmp_path / "raw"
    raw = os.fsdecode(b"sub-M\xfcller\n")  # Latin-1, and a line feed
    write_nifti(root / raw / "anat" / f"{raw}_T1w.nii.gz", brain())
    write_nifti(root / raw / "anat" / "lesion.nii.gz", brain())
    arguments = configured(tmp_path, root, template=BIDS)
    store = run_and_list(arguments, work)
    (entry,) = store.entries
    assert entry.subject == "M%FCller%0A" and entry.shard.startswith("slices/M%25FCller%250A.")
    assert run_and_list(arguments, work).entries == store.entries  # its file is found again


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=120))
def test_every_name_has_a_shard_name_that_is_safe(name: str) -> None:
    shard = shard_name(printable(name))
    assert shard.isascii() and "/" not in shard and not shard.startswith(".")
    assert 0 < len(f".{shard}.0123456789ab.npy.01234567.tmp") <= 255


@given(st.from_regex(PLAIN_NAME, fullmatch=True).filter(lambda name: len(name) <= 200))
def test_a_plain_name_is_its_shard_s(name: str) -> None:
    assert shard_name(name) == name


@given(st.lists(st.text(st.sampled_from("aA%2E.=ü "), min_size=1, max_size=6), unique=True))
def test_shard_names_are_unique(names: list[str]) -> None:
    assert len({shard_name(name) for name in names}) == len(names)


def test_names_too_long_for_a_file_stay_apart() -> None:
    names = ["ü" * 90 + end for end in "ab"]
    shards = {shard_name(name) for name in names}
    assert len(shards) == 2 and max(map(len, shards)) <= 255 - len(
        "..0123456789ab.npy.01234567.tmp"
    )


@given(st.binary(min_size=1, max_size=20).filter(lambda b: b"\0" not in b))
def test_a_path_is_found_again(path: bytes) -> None:
    assert os.fsencode(as_path(as_text(os.fsdecode(path)))) == path


def test_two_folders_of_one_name_are_refused_not_mixed(tmp_path: Path) -> None:
    touch(tmp_path, ["Mu\u0308ller", "M\u00fcller"])
    with pytest.raises(InputError, match="would both be called Müller"):
        found(tmp_path)


def test_folders_without_an_image_are_named(
    tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_cohort(tmp_path / "raw", ["1", "2"])
    (root / "3" / "T1w").mkdir(parents=True)
    (root / "4").symlink_to("nowhere")
    (root / "notes.txt").touch()  # a file is nobody's folder
    assert main(configured(tmp_path, root)) == 0
    assert "2 folders hold no image: 3, 4\n" in capsys.readouterr().out
    assert main([*configured(tmp_path, root), "--prepare.dry_run"]) == 0
    assert "2 folders hold no image: 3, 4\n" in capsys.readouterr().out


def closes(folder: Path, call: Callable[..., object]) -> Callable[..., object]:
    """`call` as it is where a folder may not be entered: root, whom all obey, can't try it."""

    def refuse(path: object, *rest: object, **named: object) -> object:
        if Path(os.fspath(path)).is_relative_to(folder):  # type: ignore[call-overload]
            raise PermissionError(13, "Permission denied", str(path))
        return call(path, *rest, **named)

    return refuse


def closed(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Folder and all below it refuse to be listed; what is below refuses to be looked at."""
    patch.setattr(matching.os, "scandir", closes(folder, os.scandir))
    whole = Path.lstat

    def refuse(path: Path) -> os.stat_result:
        if path != folder and path.is_relative_to(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    patch.setattr(Path, "lstat", refuse)


def test_a_folder_that_cannot_be_entered_is_named_and_tried_again(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_cohort(tmp_path / "raw", ["1", "2", "3"])
    arguments = configured(tmp_path, root)
    with monkeypatch.context() as patch:
        closed(root / "2", patch)
        assert main(arguments) == 3
    store = Store.open(work / "stores/study")
    assert [(q.subject, q.reason) for q in store.quarantined] == [("2", "no_permission")]
    assert "2: no_permission: 2 cannot be entered: Permission denied" in capsys.readouterr().out
    assert [e.subject for e in run_and_list(arguments, work).entries] == ["1", "2", "3"]


def test_so_is_one_within_a_subject_s_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "sub-{subject}/ses-{session}/T1w.nii.gz"
    for name in ("sub-1/ses-a", "sub-1/ses-b", "sub-2/ses-a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "T1w.nii.gz").touch()
    closed(tmp_path / "sub-2", monkeypatch)
    assert found(tmp_path, template) == ["1_a", "1_b", "2"]
    closed(tmp_path / "sub-1/ses-b", monkeypatch)
    assert found(tmp_path, template) == ["1_a", "1_b", "2"]


def test_where_all_subjects_are_hidden_their_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "site", ["1"])
    closed(tmp_path / "site", monkeypatch)
    with pytest.raises(InputError, match="its folder site cannot be entered"):
        found(tmp_path, f"site/{BIDS}")
    closed(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"its folder \. cannot be entered"):
        found(tmp_path)


def test_old_stores_are_read_and_kept(tmp_path: Path, work: Path) -> None:
    """A shard lies where the manifest says, however a newer version would call it."""
    root = write_cohort(tmp_path / "raw", ["1", "2"])
    arguments = configured(tmp_path, root)
    store = run_and_list(arguments, work)
    old, kept = (entry.shard for entry in store.entries)
    (store.path / old).rename(store.path / "slices/one.npy")
    manifest = store.path / "manifest.json"
    text = manifest.read_text().replace(old, "slices/one.npy")
    manifest.write_text(text[: text.rindex(",")] + "\n}\n")  # an older version did not seal it
    first = Store.open(store.path).entries[0]
    assert (first.subject, first.shard) == ("1", "slices/one.npy")
    assert len(Store.open(store.path).images(first))
    again = run_and_list(arguments, work)
    assert [e.shard for e in again.entries] == ["slices/one.npy", kept]


def test_hidden_files_are_nobody(tmp_path: Path) -> None:
    write_cohort(tmp_path, ["1"], "{subject}.nii.gz")
    (tmp_path / "._1.nii.gz").touch()  # macOS leaves them on foreign disks
    assert found(tmp_path, "{subject}.nii.gz") == ["1"]


def test_layout_is_still_hcp_s(tmp_path: Path) -> None:
    touch(tmp_path, ["100307"], LAYOUT)
    assert found(tmp_path, LAYOUT) == ["100307"]
