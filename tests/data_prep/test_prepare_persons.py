"""Who is who: families that are not known, one scan under two names, FreeSurfer's time points."""

import gzip
from collections import Counter
from pathlib import Path

import nibabel as nib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_volumes import LAYOUT, brain, write_cohort
from test_prepare_names import touch
from test_prepare_stage import configured, run_and_list

from data_prep.__main__ import main
from data_prep.common.errors import InputError
from data_prep.common.names import joined
from data_prep.common.wording import quantity
from data_prep.config import PrepareConfig
from data_prep.sources.path_template import Subject, discover

FREESURFER = "{subject}/mri/brain.mgz"


def study(root: Path, template: str = LAYOUT, **keys: str) -> tuple[list[Subject], list[str]]:
    return discover(
        PrepareConfig(name="study", source="hcp", root=str(root), template=template, **keys)
    )


def families(found: tuple[list[Subject], list[str]]) -> dict[str, str]:
    return {subject.subject: subject.family for subject in found[0]}


@pytest.mark.parametrize(
    "code",
    ["n/a", "nan", "", "NA", "null", "None", "NaN", "N/A", "<NA>", ".", "?", "-99", " n/a "],
)
def test_a_code_for_missing_is_no_family(tmp_path: Path, code: str) -> None:
    touch(tmp_path, ["1", "2", "3", "4"], LAYOUT)
    rows = f"1,{code}\n2,{code}\n3,real\n4,real\n"
    (tmp_path / "people.csv").write_text(f"Subject,Family_ID\n{rows}")
    found = study(tmp_path, subjects_table="people.csv")
    assert families(found) == {"1": "1", "2": "2", "3": "real", "4": "real"}
    assert bool(found[1]) == bool(code)
    if code:
        assert f"'{code.strip()}' is read as not known: each of its 2 subjects" in found[1][0]


@pytest.mark.parametrize("family", ["0", "1", "Nan Goldin", "nana", "00", "N", "x-9"])
def test_what_only_looks_like_it_is_a_family(tmp_path: Path, family: str) -> None:
    touch(tmp_path, ["1", "2"], LAYOUT)
    (tmp_path / "people.csv").write_text(f"Subject,Family_ID\n1,{family}\n2,{family}\n")
    assert set(families(study(tmp_path, subjects_table="people.csv")).values()) == {family}


def test_without_a_table_it_is_told_that_relatives_may_fall_into_two_splits(tmp_path: Path) -> None:
    touch(tmp_path, ["1", "2"], LAYOUT)
    (note,) = study(tmp_path)[1]
    assert note.startswith("no prepare.subjects_table") and "two splits" in note
    (tmp_path / "people.csv").write_text("Subject,Family_ID\n1,a\n2,b\n")
    assert not study(tmp_path, subjects_table="people.csv")[1]


def test_a_table_that_moves_subjects_is_told_and_so_is_a_small_split(
    tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "subjects"
    write_cohort(root, [str(n) for n in range(10)])
    arguments = configured(tmp_path, root)
    before = {entry.subject: entry.split for entry in run_and_list(arguments, work).entries}
    assert "another split than before" not in capsys.readouterr().out
    rows = "".join(f"{subject},one\n" for subject in before)
    (root / "people.csv").write_text(f"Subject,Family_ID\n{rows}")
    after = run_and_list([*arguments, "--prepare.subjects_table=people.csv"], work)
    (split,) = {entry.split for entry in after.entries}
    moved = sum(old != split for old in before.values())
    said = capsys.readouterr().out
    assert moved and "in another split than before: " + quantity(moved, "subject") in said
    assert said.count("another prepare.split.salt") == 2  # of three splits two are empty


@pytest.mark.parametrize("given", [".", "study/1"])
def test_a_root_one_level_too_high_or_too_deep_is_told_which_is_right(
    tmp_path: Path, given: str
) -> None:
    touch(tmp_path / "study", ["1", "2"], LAYOUT)
    with pytest.raises(InputError, match="nothing under") as told:
        study(tmp_path / given)
    assert str(told.value).endswith(f"did you mean --prepare.root {tmp_path / 'study'}?")


def test_a_family_too_large_to_be_one_is_mentioned(tmp_path: Path) -> None:
    """A code that nobody can know, such as 999 or unbekannt."""
    names = [f"{n:02}" for n in range(30)]
    touch(tmp_path, names, LAYOUT)
    rows = "".join(f"{n},{'unbekannt' if int(n) < 12 else n}\n" for n in names)
    (tmp_path / "people.csv").write_text(f"Subject,Family_ID\n{rows}")
    (note,) = study(tmp_path, subjects_table="people.csv")[1]
    assert note.startswith("12 subjects are of the family 'unbekannt'") and "blank" in note


def one_scan_twice(root: Path, other: str) -> None:
    """Subjects 1 to 6, the last of whom is the first: as a file, or compressed anew."""
    write_cohort(root, [str(n) for n in range(1, 6)])
    first, copy = (root / LAYOUT.replace("{subject}", name) for name in ("1", "6"))
    copy.parent.mkdir(parents=True)
    content = first.read_bytes()
    if other == "the same file":
        copy.write_bytes(content)
    elif other == "a link":
        copy.symlink_to(first)
    elif other == "compressed anew":
        copy.write_bytes(gzip.compress(gzip.decompress(content), 9))
    else:
        image = nib.load(first)
        image.header["descrip"] = b"another"
        nib.save(image, copy)


@pytest.mark.parametrize("other", ["the same file", "a link", "compressed anew", "another header"])
def test_one_scan_under_two_names_is_one_family_and_told(
    tmp_path: Path, work: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "raw"
    one_scan_twice(root, other)
    for salt in ("", "b", "c"):
        arguments = [*configured(tmp_path, root), f"--prepare.split.salt={salt}"]
        store = run_and_list(arguments, work)
        copies = [e for e in store.entries if e.subject in ("1", "6")]
        assert {(e.family, e.split) for e in copies} == {("1", copies[0].split)}
        assert [e.subject for e in store.entries if "same_scan" in e.flags] == ["1", "6"]
        assert "1 and 6 are one scan, and so one family" in capsys.readouterr().out
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "nothing to do" in said and "1 and 6 are one scan" in said
    page = (store.path / "report/index.html").read_text()
    assert "another subject&#39;s scan is the same" in page
    # Nothing of it is left where the copy is gone.
    (root / LAYOUT.replace("{subject}", "6")).unlink()
    store = run_and_list(arguments, work)
    assert not any(e.flags for e in store.entries)
    assert {e.subject: e.family for e in store.entries} == {str(n): str(n) for n in range(1, 6)}


def test_two_families_that_share_a_scan_are_one(tmp_path: Path, work: Path) -> None:
    root = tmp_path / "raw"
    one_scan_twice(root, "the same file")
    (root / "people.csv").write_text("Subject,Family_ID\n1,a\n2,a\n3,b\n4,n/a\n5,n/a\n6,b\n")
    store = run_and_list(configured(tmp_path, root, subjects_table="people.csv"), work)
    assert {e.subject: e.family for e in store.entries} == {
        "1": "a", "2": "a", "3": "a", "4": "4", "5": "5", "6": "a",
    }  # fmt: skip


def test_the_time_points_of_a_person_are_one_family_and_averages_are_none(
    tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "subjects"
    names = ["1004_1", "1004_1.long.1004", "1004_2.long.1004", "1005", "1005.long.base"]
    others = ["fsaverage", "fsaverage5", "cvs_avg35_inMNI152", "1004"]
    for seed, name in enumerate([*names, *others]):
        path = root / name / "mri/brain.mgz"
        path.parent.mkdir(parents=True)
        nib.save(nib.MGHImage(brain(seed=seed), None), path)
    (root / "1006" / "mri").mkdir(parents=True)
    arguments = configured(tmp_path, root, template=FREESURFER)
    store = run_and_list(arguments, work)
    assert {e.subject: e.family for e in store.entries} == {
        **dict.fromkeys(names[:3], "1004"), **dict.fromkeys(names[3:], "1005"),
    }  # fmt: skip
    splits = {(e.family, e.split) for e in store.entries}
    assert len(splits) == 2
    said = capsys.readouterr().out
    assert "1 folder holds no image: 1006\n" in said
    assert "averages of many people are left out: cvs_avg35_inMNI152, fsaverage, fsaverage5" in said
    assert "1 template of time points is left out: 1004\n" in said


def test_a_template_that_lists_its_time_points_joins_them(tmp_path: Path) -> None:
    """As FreeSurfer does in base-tps, before there is a longitudinal run."""
    touch(tmp_path, ["a1", "a2", "a_base", "b1"], FREESURFER)
    (tmp_path / "a_base/base-tps").write_text("a1\na2\n")
    assert families(study(tmp_path, FREESURFER)) == {"a1": "a_base", "a2": "a_base", "b1": "b1"}


def test_a_template_whose_time_points_are_elsewhere_is_kept(tmp_path: Path) -> None:
    touch(tmp_path, ["a_base", "b1"], FREESURFER)
    (tmp_path / "a_base/base-tps").write_text("a1\na2\n")
    assert families(study(tmp_path, FREESURFER)) == {"a_base": "a_base", "b1": "b1"}


@pytest.mark.parametrize("rows", ["a,x\nb,x\n", "a1.long.a,x\nb1.long.b,x\n", "a1,x\nb1,x\n"])
def test_a_table_may_call_time_points_as_it_likes(tmp_path: Path, rows: str) -> None:
    touch(tmp_path, ["a1.long.a", "b1.long.b"], FREESURFER)
    (tmp_path / "people.csv").write_text(f"Subject,Family_ID\n{rows}")
    found = study(tmp_path, FREESURFER, subjects_table="people.csv")
    assert set(families(found).values()) == {"x"}


@given(st.lists(st.tuples(*[st.sampled_from("abcdefgh")] * 2), max_size=8))
def test_joined_names_are_those_that_a_chain_of_pairs_connects(
    pairs: list[tuple[str, str]],
) -> None:
    found = joined(pairs)
    assert all(found[a] == found[b] for a, b in pairs)
    reached = {name: {name} for pair in pairs for name in pair}
    for _ in pairs:
        for a, b in pairs:
            reached[a] = reached[b] = reached[a] | reached[b]
    assert all(found[name] in reached[name] for name in reached)
    assert Counter(found.values()).keys() <= {min(names) for names in reached.values()}


def test_two_names_of_one_scan_are_one_family(store_writer, work: Path) -> None:  # type: ignore[no-untyped-def]
    from data_prep.config import SplitConfig
    from data_prep.plan import copies, with_splits

    entries = store_writer(work).entries
    twin = vars(entries[0]) | {"subject": "twin", "family": "twin", "split": "test"}
    leaky = (*entries, type(entries[0])(**twin))
    assert len(copies(leaky)) == 1
    by_name = {entry.subject: entry for entry in leaky}
    whole = with_splits(by_name, SplitConfig(), {"twin": "test"})
    assert whole["twin"].split == whole["p00"].split  # type: ignore[union-attr]
