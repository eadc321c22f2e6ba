"""Who is found, what they are called, and which of them are one family."""

import csv
import gzip
import io
import os
from collections import Counter
from pathlib import Path

import nibabel as nib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_volumes import LAYOUT, brain, write_cohort, write_nifti
from studies import NAMES, Study

from data_prep.common.errors import InputError
from data_prep.common.names import as_path, as_text, joined, printable, shard_name
from data_prep.config import PLAIN_NAME, PrepareConfig
from data_prep.sources import matching
from data_prep.sources.path_template import Subject, discover

BIDS = "sub-{subject}/anat/sub-{subject}_T1w.nii.gz"
FREESURFER = "{subject}/mri/brain.mgz"
TABLE = "people.csv"


def find(root: Path, template: str = BIDS, **keys: str) -> tuple[list[Subject], list[str]]:
    return discover(
        PrepareConfig(name="study", source="hcp", root=str(root), template=template, **keys)  # type: ignore[arg-type]
    )


def names(root: Path, template: str = BIDS, **keys: str) -> list[str]:
    return [subject.subject for subject in find(root, template, **keys)[0]]


def families(root: Path, template: str = BIDS, **keys: str) -> dict[str, str]:
    return {subject.subject: subject.family for subject in find(root, template, **keys)[0]}


def touch(root: Path, names: list[str], template: str = BIDS) -> None:
    for name in names:
        path = root / template.replace("{subject}", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# Layout, files that are nobody's, and a session's or not.
LAYOUTS = {
    BIDS: ["sub-301/anat/sub-302_T1w.nii.gz", "sub-301/anat/sub-301_bold.nii.gz"],
    "{subject}/T1w/T2w_acpc_dc_restore_brain.nii.gz": ["301/T1w/other.nii.gz"],
    "images[1]/{subject}.nii.gz": ["images[1]/._301.nii.gz", "images1/301.nii.gz"],
    "sub-{subject}/ses-a/sub-{subject}_ses-a_T1w.nii": ["sub-301/ses-b/sub-301_ses-b_T1w.nii"],
}


@pytest.mark.parametrize("template", LAYOUTS)
def test_a_template_names_whom_it_says_and_nobody_else(tmp_path: Path, template: str) -> None:
    touch(tmp_path, NAMES, template)
    for other in LAYOUTS[template]:
        touch(tmp_path, ["_"], other)
    assert names(tmp_path, template) == NAMES


def test_another_layout_gives_the_same_pixels(study: Study) -> None:
    expected = study.store.entries
    write_cohort(Path("other"), NAMES, BIDS)
    study.run(root="other", template=BIDS)
    shards = [(e.subject, e.shard_sha256, e.split) for e in study.store.entries]
    assert shards == [(e.subject, e.shard_sha256, e.split) for e in expected]


@pytest.mark.parametrize(
    ("template", "files"),
    [
        ("sub-{subject}_T1w.nii.gz", ["sub-01_ses-1_T1w.nii.gz", "sub-01_ses-2_T1w.nii.gz"]),
        ("{subject}_{session}.nii.gz", ["001_1.nii.gz", "001_pre_2.nii.gz"]),
    ],
)
def test_sessions_are_never_taken_for_people(
    template: str, files: list[str], tmp_path: Path
) -> None:
    for name in files:
        touch(tmp_path, ["_"], name)
    with pytest.raises(InputError, match="Sessions of one subject would count as several"):
        find(tmp_path, template)


def test_sessions_of_a_subject_are_one_family(tmp_path: Path) -> None:
    template = "sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_T1w.nii.gz"
    for person, session in (("01", "a"), ("01", "b"), ("02", "a"), ("03", "2024")):
        touch(tmp_path, [person], template.replace("{session}", session))
    # Neither: the two places of {session}, or of {subject}, disagree.
    touch(tmp_path, ["_"], "sub-01/ses-c/anat/sub-01_ses-d_T1w.nii.gz")
    touch(tmp_path, ["_"], "sub-01/ses-c/anat/sub-02_ses-c_T1w.nii.gz")
    sessions = {"01_a": "01", "01_b": "01", "02_a": "02", "03_2024": "03"}
    assert families(tmp_path, template) == sessions
    # The table is one of people, whatever the number of their sessions.
    (tmp_path / TABLE).write_text("Subject,Family_ID\n01,x\n02,x\n03,y\n")
    joined = {"01_a": "x", "01_b": "x", "02_a": "x", "03_2024": "y"}
    assert families(tmp_path, template, subjects_table=TABLE) == joined


@pytest.mark.parametrize(
    ("template", "files", "told"),
    [
        ("{subject}/{session}.nii", ["a_b/c.nii", "a/b_c.nii"], "both be called a_b_c"),
        (BIDS, [BIDS.replace("{subject}", n) for n in ("Mu\u0308ller", "Müller")], "called Müller"),
    ],
)
def test_two_that_would_have_one_name_are_refused(
    tmp_path: Path, template: str, files: list[str], told: str
) -> None:
    for name in files:
        touch(tmp_path, ["_"], name)
    with pytest.raises(InputError, match=told):
        find(tmp_path, template)


def test_any_name_is_prepared_and_its_shard_has_a_safe_one(raw: Study) -> None:
    """Signs, blanks, umlauts; and bytes that are no text."""
    given = ["pre+post", "M üller", "50%", "=1+1", "a,b", "0042"]
    write_cohort(raw.root, given, BIDS)
    latin = os.fsdecode(b"sub-M\xfcller\n")  # and a line feed
    write_nifti(raw.root / latin / "anat" / f"{latin}_T1w.nii.gz", brain())
    raw.run(template=BIDS)
    before = raw.store.entries
    assert [entry.subject for entry in before] == sorted([*given, "M%FCller%0A"])
    shards = {entry.subject: entry.shard for entry in before}
    assert shards["0042"].startswith("slices/0042.")
    assert shards["pre+post"].startswith("slices/pre%2Bpost.")
    assert all(PLAIN_NAME.fullmatch(s[7:].replace("%", "")) for s in shards.values())
    assert "nothing to do" in raw.run(template=BIDS)  # all files are found again
    # In the report's table no spreadsheet calculates what begins as a formula does.
    assert ",'=1+1," in (raw.folder / "report/subjects.csv").read_text()


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=120))
def test_every_name_has_a_shard_name_that_is_safe(name: str) -> None:
    shard = shard_name(printable(name))
    assert shard.isascii() and "/" not in shard and not shard.startswith(".")
    assert 0 < len(f".{shard}.0123456789ab.npy.01234567.tmp") <= 255
    if PLAIN_NAME.fullmatch(name) and len(name) < 120:
        assert shard == name


@given(st.lists(st.text(st.sampled_from("aA%2E.=ü "), min_size=1, max_size=6), unique=True))
def test_shard_names_are_unique(names: list[str]) -> None:
    long = [f"{'ü' * 90}{name}" for name in names]
    assert len({shard_name(name) for name in [*names, *long]}) == 2 * len(names)


@given(st.binary(min_size=1, max_size=20).filter(lambda b: b"\0" not in b))
def test_a_path_is_found_again(path: bytes) -> None:
    assert os.fsencode(as_path(as_text(os.fsdecode(path)))) == path


def closed(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Folder and all below it refuse to be listed; what is below refuses to be looked at. Root,
    whom all obey, could not try it otherwise."""
    scandir, lstat = os.scandir, Path.lstat

    def refuse(path: Path, kept: bool) -> None:
        if Path(path).is_relative_to(folder) and not (kept and path == folder):
            raise PermissionError(13, "Permission denied", str(path))

    def listed(path: Path) -> object:
        refuse(path, False)
        return scandir(path)

    def looked(path: Path) -> os.stat_result:
        refuse(path, True)
        return lstat(path)

    patch.setattr(matching.os, "scandir", listed)
    patch.setattr(Path, "lstat", looked)


def test_a_folder_that_cannot_be_entered_is_named_and_tried_again(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    (study.root / "3" / "T1w").mkdir(parents=True)
    (study.root / "4").symlink_to("nowhere")
    (study.root / "notes.txt").touch()  # a file is nobody's folder
    before = study.store.entries
    with monkeypatch.context() as patch:
        closed(study.root.absolute() / "202", patch)
        told = study.run(code=3)
    assert "202: no_permission: 202 cannot be entered: Permission denied" in told
    assert "2 folders hold no image: 3, 4\n" in told
    study.run()
    assert study.store.entries == before


@pytest.mark.parametrize(
    ("folder", "template", "told"),
    [
        ("sub-2", "sub-{subject}/ses-{session}/T1w.nii.gz", ["1_a", "1_b", "2"]),
        ("sub-2/ses-a", "sub-{subject}/ses-{session}/T1w.nii.gz", ["1_a", "1_b", "2_a"]),
        (".", "sub-{subject}/ses-{session}/T1w.nii.gz", r"its folder \. cannot be entered"),
        ("site", "site/{subject}.nii.gz", "its folder site cannot be entered"),
    ],
)
def test_closed_folders_are_told_at_every_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, template: str, told: object
) -> None:
    for name in ("sub-1/ses-a/T1w", "sub-1/ses-b/T1w", "sub-2/ses-a/T1w", "site/1"):
        touch(tmp_path, ["_"], f"{name}.nii.gz")
    closed(tmp_path / folder, monkeypatch)
    if isinstance(told, str):
        with pytest.raises(InputError, match=told):
            find(tmp_path, template)
    else:
        assert names(tmp_path, template) == told


@pytest.mark.parametrize("given", [".", "study/1"])
def test_a_root_one_level_too_high_or_too_deep_is_told_which_is_right(
    tmp_path: Path, given: str
) -> None:
    touch(tmp_path / "study", ["1", "2"], LAYOUT)
    with pytest.raises(InputError, match="nothing under") as told:
        find(tmp_path / given, LAYOUT)
    assert str(told.value).endswith(f"did you mean --prepare.root {tmp_path / 'study'}?")


GOOD = st.sampled_from(["", "a", "b", "52259_82122", "família", " a", "0", "n/a", "-99", "<NA>"])


@given(st.lists(GOOD, min_size=2, max_size=12), st.randoms(), st.sampled_from(",\t;"))
@settings(max_examples=40)
def test_families_are_the_table_s_whatever_its_order_and_separator(
    tmp_path_factory: pytest.TempPathFactory, given: list[str], draw: object, separator: str
) -> None:
    """A blank, and a code for missing, is a family that is not known: everyone is one."""
    folder = tmp_path_factory.mktemp("study")
    people = {f"p{n:02}": family for n, family in enumerate(given)}
    touch(folder, list(people))
    rows = list(people.items())
    draw.shuffle(rows)  # type: ignore[attr-defined]
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows([("Subject", "Family_ID"), *rows])
    (folder / TABLE).write_text(text.getvalue(), "utf-8")
    expected = {n: "" if f in ("n/a", "-99", "<NA>") else f.strip() for n, f in people.items()}
    assert families(folder, subjects_table=TABLE) == {n: f or n for n, f in expected.items()}


BAD_TABLES: dict[str, tuple[str | bytes | None, str]] = {
    "no Subject": ("Person,Family_ID\n1,a\n", "no column Subject (columns by commas: Person, Fam"),
    "no Family_ID": ("Subject;Site\n1;a\n", "no column Family_ID (columns by semicolons: Subject"),
    "a column twice": ("Subject,Family_ID,Age,Age\n", "row 1 names the column Age twice"),
    "absent": ("Subject,Family_ID\n1,a\n", "no row for 2 of the subjects found, the first of"),
    "a subject twice": ("Subject,Family_ID\n1,\n2,\n1,\n", "row 4 names subject 1 a second time"),
    "no image": ("Subject,Family_ID\n1,\n7,\n", "row 3 names subject 7, which has no image"),
    "no name": ("Subject,Family_ID\n1,a\n,b\n", "row 3 has no Subject"),
    "nobody": ("Subject,Family_ID\nx,\ny,\n", "names none of the 3 subjects"),
    "a cell too many": (
        "Subject,Family_ID\n1,a\n2,b,c\n",
        "row 3 has 3 cells and the header 2",
    ),
    "a cell too few": ("Subject\tFamily_ID\n1\ta\n2\n", "row 3 has 1 cells"),
    "mixed": ("Subject\tFamily_ID\n1,a\n", "(separated by tabs)"),
    "a number": ("Subject,Family_ID\n1,12\n2,12.0\n", "row 3 has the family '12.0', which row 2"),
    "zeros": ("Subject,Family_ID\n1,007\n2,7\n", "row 3 has the family '7', which row 2 spells"),
    "case": ("Subject,Family_ID\n1,Fam01\n2,x\n3,fam01\n", "row 4 has the family 'fam01'"),
    "not closed": ('Subject,Family_ID\n1,"a\n', "cannot be read"),
    "latin": (b"Subject,Family_ID\nM\xfcller,a\n", "save it as UTF-8"),
    "missing": (None, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_table_that_leaves_anything_open_is_refused(tmp_path: Path, case: str) -> None:
    touch(tmp_path, ["1", "2", "3"])
    text, told = BAD_TABLES[case]
    if text is not None:
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / TABLE).write_bytes(content)
    with pytest.raises(InputError) as error:
        find(tmp_path, subjects_table=TABLE)
    assert told in str(error.value) and str(tmp_path / TABLE) in str(error.value)


def test_a_table_finds_names_in_any_unicode_form_and_may_list_more(tmp_path: Path) -> None:
    touch(tmp_path, ["Mu\u0308ller", "02"])  # as macOS has it: u and a separate diaeresis
    (tmp_path / TABLE).write_text("Subject,Family_ID\nMüller,a\n 02 ,a\n777,a\n", "utf-8-sig")
    keys = {"subjects_table": TABLE, "subjects_table_extra": "ignore"}
    assert families(tmp_path, **keys) == {"02": "a", "Müller": "a"}


@pytest.mark.parametrize("family", ["0", "Nan Goldin", "nana", "00", "N", "x-9"])
def test_what_only_looks_like_a_code_is_a_family(tmp_path: Path, family: str) -> None:
    touch(tmp_path, ["1", "2"])
    (tmp_path / TABLE).write_text(f"Subject,Family_ID\n1,{family}\n2,{family}\n")
    assert set(families(tmp_path, subjects_table=TABLE).values()) == {family}


def test_the_user_is_told_what_a_table_leaves_open(tmp_path: Path) -> None:
    """No table at all; codes for missing; a code that nobody can know, such as unbekannt."""
    people = [f"{n:02}" for n in range(30)]
    touch(tmp_path, people)
    (note,) = find(tmp_path)[1]
    assert note.startswith("no prepare.subjects_table") and "two splits" in note
    rows = [f"{n},{'n/a' if n < '02' else 'unbekannt' if n < '14' else n}\n" for n in people]
    (tmp_path / TABLE).write_text(f"Subject,Family_ID\n{''.join(rows)}")
    code, large = find(tmp_path, subjects_table=TABLE)[1]
    assert "'n/a' is read as not known: each of its 2 subjects" in code
    assert large.startswith("12 subjects are of the family 'unbekannt'") and "blank" in large


def test_two_scans_of_one_person_are_one_family(oasis: Path) -> None:
    """1023 and 1024 are second scans of 1003 and 1004."""
    of = families(oasis, LAYOUT, subjects_table="subjects.csv")
    assert of["1003"] == of["1023"] != of["1004"] == of["1024"]


def test_a_table_that_moves_subjects_is_told_and_so_is_a_small_split(study: Study) -> None:
    before = {entry.subject: entry.split for entry in study.store.entries}
    rows = "".join(f"{subject},one\n" for subject in before)
    (study.root / TABLE).write_text(f"Subject,Family_ID\n{rows}")
    told = study.run(f"--prepare.subjects_table={TABLE}")
    (split,) = {entry.split for entry in study.store.entries}
    moved = sum(old != split for old in before.values())
    assert moved and f"in another split than before: {moved} subject" in told
    assert told.count("another prepare.split.salt") == 2  # of three splits two are empty


def again(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content), 9)


def with_description(content: bytes) -> bytes:
    image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    image.header["descrip"] = b"another"
    return gzip.compress(image.to_bytes())


@pytest.mark.parametrize("copied", [None, again, with_description])
def test_one_scan_under_two_names_is_one_family_and_told(study: Study, copied: object) -> None:
    """As a link, compressed anew, or with another header; two families that share it are one."""
    first, copy = (study.root / LAYOUT.replace("{subject}", name) for name in ("201", "7"))
    copy.parent.mkdir(parents=True)
    if copied is None:
        copy.symlink_to(first.absolute())
    else:
        copy.write_bytes(copied(first.read_bytes()))  # type: ignore[operator]
    (study.root / TABLE).write_text(
        "Subject,Family_ID\n201,a\n202,a\n203,b\n204,n/a\n205,n/a\n206,n/a\n7,b\n"
    )
    one = {"201": "a", "202": "a", "203": "a", "7": "a", "204": "204", "205": "205", "206": "206"}
    for salt in ("", "b"):
        keys = {"subjects_table": TABLE, "split": {"salt": salt}}
        told = study.run(**keys)
        assert {e.subject: e.family for e in study.store.entries} == one
        assert len({e.split for e in study.store.entries if e.family == "a"}) == 1
        assert [e.subject for e in study.store.entries if "same_scan" in e.flags] == ["201", "7"]
        assert "201 and 7 are one scan, and so one family" in told
    told = study.run(**keys)
    assert "nothing to do" in told and "201 and 7 are one scan" in told
    page = (study.folder / "report/index.html").read_text()
    assert "another subject&#39;s scan is the same" in page
    # Nothing of it is left where the copy is gone.
    copy.unlink()
    study.run()
    assert not any(e.flags for e in study.store.entries)
    assert {e.family for e in study.store.entries} == set(NAMES)


def test_freesurfer_s_time_points_are_one_family_and_averages_are_nobody(tmp_path: Path) -> None:
    points = ["1004_1", "1004_1.long.1004", "1004_2.long.1004", "1005", "1005.long.base"]
    others = ["fsaverage", "fsaverage5", "cvs_avg35_inMNI152", "1004"]
    touch(tmp_path, [*points, *others], FREESURFER)
    (tmp_path / "1006" / "mri").mkdir(parents=True)
    of = dict.fromkeys(points[:3], "1004") | dict.fromkeys(points[3:], "1005")
    assert families(tmp_path, FREESURFER) == of
    notes = "\n".join(find(tmp_path, FREESURFER)[1])
    assert "1 folder holds no image: 1006\n" in notes
    assert "people are left out: cvs_avg35_inMNI152, fsaverage, fsaverage5\n" in notes
    assert "1 template of time points is left out: 1004\n" in notes
    # Before there is a longitudinal run base-tps lists them; a template without its points is kept.
    (tmp_path / "b/mri").mkdir(parents=True)
    touch(tmp_path, ["a1", "a2", "a_base", "b_base"], FREESURFER)
    (tmp_path / "a_base/base-tps").write_text("a1\na2\n")
    (tmp_path / "b_base/base-tps").write_text("b1\nb2\n")
    more = {"a1": "a_base", "a2": "a_base", "b_base": "b_base"}
    assert families(tmp_path, FREESURFER) == of | more


@pytest.mark.parametrize("rows", ["a,x\nb,x\n", "a1.long.a,x\nb1.long.b,x\n", "a1,x\nb1,x\n"])
def test_a_table_may_call_time_points_as_it_likes(tmp_path: Path, rows: str) -> None:
    touch(tmp_path, ["a1.long.a", "b1.long.b"], FREESURFER)
    (tmp_path / TABLE).write_text(f"Subject,Family_ID\n{rows}")
    assert set(families(tmp_path, FREESURFER, subjects_table=TABLE).values()) == {"x"}


@given(st.lists(st.tuples(*[st.sampled_from("abcdefgh")] * 2), max_size=8))
def test_joined_names_are_those_that_a_chain_of_pairs_connects(
    pairs: list[tuple[str, str]],
) -> None:
    names = joined(pairs)
    assert all(names[a] == names[b] for a, b in pairs)
    reached = {name: {name} for pair in pairs for name in pair}
    for _ in pairs:
        for a, b in pairs:
            reached[a] = reached[b] = reached[a] | reached[b]
    assert all(names[name] in reached[name] for name in reached)
    assert Counter(names.values()).keys() <= {min(names) for names in reached.values()}
