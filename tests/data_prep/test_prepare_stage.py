"""The stage as a user runs it: what is made, what is made again, what is told."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from fragile_worker import double
from small_volumes import LAYOUT, brain, write_cohort, write_nifti

from data_prep.__main__ import main
from data_prep.common.errors import VolumeError
from data_prep.executors.local import Processes
from data_prep.store import Store, write_shard
from data_prep.volume import transforms
from data_prep.volume.verify import VerifiedVolume

NAMES = [str(n) for n in range(201, 207)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "raw", NAMES)


def configured(folder: Path, root: Path, /, **keys: object) -> list[str]:
    """The arguments for a configuration file as people write them, other sections included."""
    section = {"source": "hcp", "root": str(root), "size": 32, "spacing_mm": 1.0, "workers": 1}
    section["track"] = False  # importing MLflow takes seconds
    section["plausibility"] = {"action": "ignore"}  # a brain of 5 ml is no adult's
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"prepare": section | keys, "training": {"epochs": 3}}))
    return ["--config", str(path)]


def times(work: Path) -> dict[str, int]:
    """Time stamps of files and folders; shards by subject, `slices/ID`, whatever they hold."""
    store = work / "stores" / "study"
    paths = [p.relative_to(store) for p in store.rglob("*")]
    return {
        str(p).split(".")[0] if p.suffix == ".npy" else str(p): (store / p).stat().st_mtime_ns
        for p in paths
    }


def run_and_list(arguments: list[str], work: Path) -> Store:
    assert main(arguments) == 0
    return Store.open(work / "stores" / "study")


def test_a_second_run_does_nothing_and_says_so(
    root: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = configured(tmp_path, root)
    assert main(arguments) == 0
    assert "nothing to do" not in capsys.readouterr().out
    before = times(work)
    assert main(arguments) == 0
    assert "nothing to do: study is up to date" in capsys.readouterr().out
    assert times(work) == before


def test_nobody_moves_when_people_are_added_and_nothing_old_is_remade(
    root: Path, work: Path, tmp_path: Path
) -> None:
    arguments = configured(tmp_path, root)
    before, stamps = run_and_list(arguments, work), times(work)
    write_cohort(root, ["100", "203x", "999"])
    after = run_and_list(arguments, work)
    assert [e.subject for e in after.entries] == sorted([*NAMES, "100", "203x", "999"])
    assert [e for e in after.entries if e.subject in NAMES] == list(before.entries)
    for name in NAMES:
        assert times(work)[f"slices/{name}"] == stamps[f"slices/{name}"]


def test_only_what_changed_is_made_again_and_the_shards_of_the_gone_go(
    root: Path, work: Path, tmp_path: Path
) -> None:
    arguments = configured(tmp_path, root)
    before, stamps = run_and_list(arguments, work), times(work)
    write_nifti(root / LAYOUT.replace("{subject}", "202"), brain(seed=99))
    shutil.rmtree(root / "206")
    after = run_and_list(arguments, work)
    digests = [{e.subject: e.shard_sha256 for e in s.entries} for s in (before, after)]
    assert list(digests[1]) == NAMES[:-1]
    assert [n for n in NAMES[:-1] if digests[0][n] != digests[1][n]] == ["202"]
    now = times(work)
    assert "slices/206" not in now
    assert [n for n in NAMES[:-1] if now[f"slices/{n}"] != stamps[f"slices/{n}"]] == ["202"]


def test_another_split_rewrites_no_pixel_and_another_size_all(
    root: Path, work: Path, tmp_path: Path
) -> None:
    run_and_list(configured(tmp_path, root), work)
    stamps = times(work)
    salted = run_and_list([*configured(tmp_path, root), "--prepare.split.salt", "b"], work)
    assert salted.manifest["configuration"]["split"]["salt"] == "b"
    shards = [f"slices/{name}" for name in NAMES]
    assert all(times(work)[s] == stamps[s] for s in shards)
    large = run_and_list([*configured(tmp_path, root), "--prepare.size=64"], work)
    assert large.image_shape == (1, 64, 64)
    assert all(times(work)[s] != stamps[s] for s in shards)


@pytest.mark.parametrize("loss", ["shard gone", "shard cut", "manifest garbled", "interrupted"])
def test_a_damaged_store_is_mended(root: Path, work: Path, tmp_path: Path, loss: str) -> None:
    arguments = configured(tmp_path, root)
    store = run_and_list(arguments, work)
    shard, manifest = store.path / store.subjects()[2].shard, store.path / "manifest.json"
    if loss == "shard gone":
        shard.unlink()
    elif loss == "shard cut":
        shard.write_bytes(shard.read_bytes()[:100])
    elif loss == "manifest garbled":
        manifest.write_text("{")
    else:
        manifest.rename(store.path / "manifest.partial.json")
    mended = run_and_list(arguments, work)
    assert mended.entries == store.entries
    assert mended.digest == store.digest
    assert sorted(p.name for p in store.path.iterdir()) == ["manifest.json", "report", "slices"]


def test_too_many_quarantined_are_told_and_tolerated_where_the_user_says_so(
    root: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("901", "902"):
        write_nifti(root / LAYOUT.replace("{subject}", name), brain()).write_bytes(b"")
    arguments = configured(tmp_path, root)
    assert main(arguments) == 3
    told = capsys.readouterr()
    assert told.err == ""
    for quarantined in Store.open(work / "stores" / "study").quarantined:
        assert f"{quarantined.subject}: {quarantined.reason}: {quarantined.message}" in told.out
    # The same on the run that does nothing; no longer where the user accepts as many.
    assert main(arguments) == 3
    assert "nothing to do" in capsys.readouterr().out
    assert main([*arguments, "--prepare.max_quarantined=2"]) == 0


def test_where_nobody_is_usable_there_is_no_store(
    tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_nifti(tmp_path / "raw" / LAYOUT.replace("{subject}", "1"), brain())
    path.write_bytes(b"")
    assert main(configured(tmp_path, tmp_path / "raw")) == 2
    assert "not one of 1 subject could be prepared (1 empty)" in capsys.readouterr().err
    assert not [p for p in work.rglob("*") if p.is_file() and p.suffix != ".lock"]


@pytest.mark.parametrize(
    "template",
    [
        "sub-{subject}/anat/sub-{subject}_T1w.nii.gz",
        "{subject}/T1w/T2w_acpc_dc_restore_brain.nii.gz",
        "sub-{subject}/anat/sub-{subject}_T2w.nii",
        "images[1]/{subject}.nii.gz",
    ],
)
def test_other_layouts_give_the_same_pixels(
    root: Path, work: Path, tmp_path: Path, template: str
) -> None:
    expected = run_and_list(configured(tmp_path, root), work)
    other = write_cohort(tmp_path / "other", NAMES, template)
    # Not a subject: the two places of {subject} disagree, or it is another kind of image.
    write_nifti(other / "sub-301/anat/sub-302_T1w.nii.gz", brain())
    write_nifti(other / "sub-301/anat/sub-301_bold.nii.gz", brain())
    found = run_and_list(configured(tmp_path, other, template=template), work)
    assert [(e.subject, e.shard_sha256, e.split) for e in found.entries] == [
        (e.subject, e.shard_sha256, e.split) for e in expected.entries
    ]


def test_families_stay_together(root: Path, work: Path, tmp_path: Path) -> None:
    (root / "subjects.csv").write_text(
        "Subject,Family_ID\n201,a\n202,a\n203,a\n204,b\n205,\n206,\n"
    )
    store = run_and_list(configured(tmp_path, root, subjects_table="subjects.csv"), work)
    families = {e.subject: e.family for e in store.entries}
    assert families == dict(zip(NAMES, ["a", "a", "a", "b", "205", "206"], strict=True))
    assert len({e.split for e in store.entries if e.family == "a"}) == 1


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("Person,Family_ID\n201,a\n", "no column Subject"),
        ("Subject\n201\n202\n", "no column Family_ID"),
        (
            "Subject,Family_ID\n201,a\n",
            "no row for 5 of the subjects found, the first of which is 202",
        ),
        ("Subject,Family_ID\n201,\n202,\n201,\n", "row 4 names subject 201 a second time"),
        ("Subject,Family_ID\n201,\n777,\n", "row 3 names subject 777, which has no image"),
        ("Subject,Family_ID\n201,\n777,\n", "subjects_table_extra"),
        ("Subject,Family_ID\n201,a\n,b\n", "row 3 has no Subject"),
        ("Subject,Family_ID\nx,\ny,\n", "names none of the 6 subjects"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_subjects_table_is_told(
    root: Path, tmp_path: Path, table: str | None, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if table is not None:
        (root / "subjects.csv").write_text(table)
    assert main(configured(tmp_path, root, subjects_table="subjects.csv")) == 2
    assert told in capsys.readouterr().err


def test_rows_of_people_without_an_image_are_passed_over_where_that_is_asked_for(
    root: Path, work: Path, tmp_path: Path
) -> None:
    rows = "".join(f"{name},a\n" for name in [*NAMES, "777"])
    (root / "subjects.csv").write_text(f"Subject,Family_ID\n{rows}")
    keys = {"subjects_table": "subjects.csv", "subjects_table_extra": "ignore"}
    store = run_and_list(configured(tmp_path, root, **keys), work)
    assert [e.subject for e in store.entries] == NAMES


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("sub-{subject}_T1w.nii.gz", ["sub-01_ses-1_T1w.nii.gz", "sub-01_ses-2_T1w.nii.gz"]),
        ("{subject}_{session}.nii.gz", ["001_1.nii.gz", "001_pre_2.nii.gz"]),
    ],
)
def test_sessions_are_never_taken_for_people(
    template: str, names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        write_nifti(tmp_path / "flat" / name, brain())
    assert main(configured(tmp_path, tmp_path / "flat", template=template)) == 2
    told = capsys.readouterr().err
    assert "Sessions of one subject would count as several" in told
    assert told.count("\n") == 1


def test_a_mistyped_key_leaves_the_store_as_it_was(
    root: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = configured(tmp_path, root)
    store = run_and_list(arguments, work)
    before = {p: p.read_bytes() for p in store.path.rglob("*") if p.is_file()}
    assert main([*arguments, "--prepare.mask_template={subject}/typo.nii.gz"]) == 2
    assert "not one of 6 subjects could be prepared" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in store.path.rglob("*") if p.is_file()} == before


def test_trying_again_in_vain_touches_nothing(
    root: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = configured(tmp_path, root, max_quarantined=1)
    refused, whole = root / LAYOUT.replace("{subject}", "203"), transforms.read_verified

    def reads(path: Path, **options: bool) -> VerifiedVolume:
        if path == refused:
            raise VolumeError("no_permission", f"{path.name} may not be read by this user")
        return whole(path, **options)

    monkeypatch.setattr(transforms, "read_verified", reads)
    store = run_and_list(arguments, work)
    assert [q.reason for q in store.quarantined] == ["no_permission"]
    stamps = times(work)
    run_and_list(arguments, work)
    assert times(work) == stamps
    monkeypatch.undo()
    monkeypatch.setenv("WORK", str(work))
    assert not run_and_list(arguments, work).quarantined


def test_a_shard_replaces_no_other(tmp_path: Path) -> None:
    """A worker that outlived its run, or a run that crashes, costs no shard of the store."""
    shards = {write_shard(tmp_path, "1", np.full((1, 1, 2, 2), n / 2))["shard"] for n in range(3)}
    assert len(shards) == 3 and all((tmp_path / shard).is_file() for shard in shards)


def test_sessions_are_items_of_their_own_and_one_person(work: Path, tmp_path: Path) -> None:
    template = "sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_T1w.nii.gz"
    root = tmp_path / "bids"
    scans = [("01", "a"), ("01", "b"), ("02", "a"), ("03", "2024")]
    for seed, (person, session) in enumerate(scans):
        name = template.replace("{subject}", person).replace("{session}", session)
        write_nifti(root / name, brain(seed=seed))
    # Neither: the two places of {session}, or of {subject}, disagree.
    write_nifti(root / "sub-01/ses-c/anat/sub-01_ses-d_T1w.nii.gz", brain())
    write_nifti(root / "sub-01/ses-c/anat/sub-02_ses-c_T1w.nii.gz", brain())
    keys: dict[str, object] = {"template": template}
    store = run_and_list(configured(tmp_path, root, **keys), work)
    families = {e.subject: e.family for e in store.entries}
    assert families == {"01_a": "01", "01_b": "01", "02_a": "02", "03_2024": "03"}
    # The table is one of people, whatever the number of their sessions.
    (root / "people.csv").write_text("Subject,Family_ID\n01,x\n02,x\n03,y\n")
    keys["subjects_table"] = "people.csv"
    store = run_and_list(configured(tmp_path, root, **keys), work)
    families = {e.subject: e.family for e in store.entries}
    assert families == {"01_a": "x", "01_b": "x", "02_a": "x", "03_2024": "y"}


def test_two_sessions_that_would_have_one_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "raw"
    for name in ("a_b/c.nii", "a/b_c.nii"):
        write_nifti(root / name, brain())
    assert main(configured(tmp_path, root, template="{subject}/{session}.nii")) == 2
    assert "would both be called a_b_c" in capsys.readouterr().err


def test_a_subject_whose_two_affines_disagree_is_flagged_and_kept(
    root: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / LAYOUT.replace("{subject}", "203")
    image = nib.load(path)
    moved = image.affine.copy()
    moved[0, 3] += 5
    image = nib.Nifti1Image(brain(), image.affine)
    image.set_sform(image.affine, 1)
    image.set_qform(moved, 1)
    nib.save(image, path)
    arguments = configured(tmp_path, root)
    store = run_and_list(arguments, work)
    assert {e.subject: e.flags for e in store.entries if e.flags} == {"203": ("sform_qform",)}
    told = "a qform more than a voxel away from the sform, which is used: 1 subject, 203"
    assert told in capsys.readouterr().out
    # Only where it says something: manifests from before there were flags are read as ever.
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert [s["subject"] for s in manifest["subjects"] if "flags" in s] == ["203"]
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_missing_mask_costs_one_subject(root: Path, work: Path, tmp_path: Path) -> None:
    for name in NAMES[1:]:
        write_nifti(root / name / "mask.nii.gz", (brain() > 0).astype(np.uint8))
    arguments = configured(tmp_path, root, mask_template="{subject}/mask.nii.gz")
    assert main(arguments) == 3
    store = Store.open(work / "stores" / "study")
    assert [(q.subject, q.reason) for q in store.quarantined] == [("201", "mask_missing")]
    write_nifti(root / "201" / "mask.nii.gz", (brain() > 0).astype(np.uint8))
    assert main(arguments) == 0


BAD_INPUTS: dict[str, tuple[dict[str, object], list[str], str]] = {
    "missing root": ({"root": "nowhere"}, [], "prepare.root"),
    "no root": ({"root": ""}, [], "prepare.root"),
    "empty root": ({"template": "{subject}/nothing.nii.gz"}, [], "prepare.template"),
    "unknown key": ({"sise": 3}, [], "prepare.sise"),
    "unknown nested key": ({"split": {"trian": 1}}, [], "prepare.split.trian"),
    "wrong type": ({"size": "large"}, [], "prepare.size"),
    "wrong value": ({"size": 48}, [], "prepare.size"),
    "wrong choice": ({"plane": "oblique"}, [], "prepare.plane"),
    "not a section": ({"split": 3}, [], "prepare.split"),
    "template without subject": ({"template": "image.nii.gz"}, [], "prepare.template"),
    "dicom": ({"template": "{subject}/IM.dcm"}, [], "dcm2niix"),
    "session in the mask only": ({"mask_template": "{subject}/{session}"}, [], "mask_template"),
    "wrong rule": ({"subjects_table_extra": "both"}, [], "subjects_table_extra"),
    "template that leaves": ({"template": "../{subject}.nii.gz"}, [], "prepare.template"),
    "unknown override": ({}, ["--prepare.sise", "3"], "--prepare.sise"),
    "unknown option": ({}, ["--verbosely", "3"], "--verbosely"),
    "wrong override": ({}, ["--prepare.split.train=2"], "prepare.split.train"),
    "no such file": ({}, ["--config", "nowhere.yaml"], "nowhere.yaml"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_line_that_names_it(
    case: str, root: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, overrides, name = BAD_INPUTS[case]
    assert main([*configured(tmp_path, root, **keys), *overrides]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert name in told.err
    assert "Traceback" not in told.err
    assert not work.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [("prepar: {}", "prepar"), ("prepare: [", "study.yaml"), ("- 1", "study.yaml")],
)
def test_a_bad_configuration_file_is_named(
    content: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.yaml").write_text(content)
    assert main(["--config", str(tmp_path / "study.yaml")]) == 2
    told = capsys.readouterr().err
    assert name in told
    assert told.count("\n") == 1


def test_a_store_of_another_schema_version_is_left_alone(
    root: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = configured(tmp_path, root)
    path = run_and_list(arguments, work).path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 7}))
    before = times(work)
    capsys.readouterr()
    assert main(arguments) == 2
    assert "schema version 7" in capsys.readouterr().err
    assert times(work) == before


def test_the_command_ends_without_a_traceback(root: Path, tmp_path: Path) -> None:
    arguments = configured(tmp_path, root / "nowhere")
    done = subprocess.run(
        [sys.executable, "-m", "data_prep", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"WORK": str(tmp_path / "w")},
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: prepare.root")
    assert done.stderr.count("\n") == 1


def test_overrides_of_other_sections_are_passed_over(
    root: Path, work: Path, tmp_path: Path
) -> None:
    others = ["--training.epochs", "5", "--model.x=-1", "--run", "a", "--training.resume"]
    store = run_and_list([*configured(tmp_path, root), *others, "--prepare.size", "64"], work)
    assert store.image_shape == (1, 64, 64)


def test_print_config_shows_what_would_be_done(
    root: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*configured(tmp_path, root), "--prepare.size=128", "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)["prepare"]
    assert (shown["size"], shown["root"]) == (128, str(root))
    assert not work.exists()


def test_two_workers_make_what_one_makes(root: Path, work: Path, tmp_path: Path) -> None:
    one = run_and_list(configured(tmp_path, root), work)
    shutil.rmtree(work)
    two = run_and_list(configured(tmp_path, root, workers=2), work)
    assert two.entries == one.entries
    assert two.digest == one.digest


def test_a_dying_worker_costs_only_its_own_item() -> None:
    items = [1, 2, 103, 4, 5]
    results = Processes(2).run_all(double, items, died=lambda item: -item)
    assert sorted(results) == [-103, 2, 4, 8, 10]


def test_real_scans_come_out_upright_and_inside_the_picture(
    oasis: Path, work: Path, tmp_path: Path
) -> None:
    """Three real people, stored LAS: in RAS mm the picture must lie where the brain does."""
    root = tmp_path / "three"
    for name in ("1000", "1003", "1023"):
        shutil.copytree(oasis / name, root / name)
    rows = (oasis / "subjects.csv").read_text().splitlines()
    known = [row for row in rows if row.split(",")[0] in ("Subject", "1000", "1003", "1023")]
    (root / "three.csv").write_text("\n".join(known))
    arguments = configured(tmp_path, root, subjects_table="three.csv", spacing_mm=6.4)
    store = run_and_list(arguments, work)
    assert len({e.split for e in store.entries if e.subject in ("1003", "1023")}) == 1
    for entry in store.entries:
        pixels = store.slices(entry)[:, 0].astype(float)
        assert len(pixels) > 10
        border = np.concatenate([pixels[:, [0, -1]].ravel(), pixels[:, :, [0, -1]].ravel()])
        assert border.max() < 0.01 * 65535
        image = nib.load(root / entry.source)
        brain_mm = image.affine @ [*np.argwhere(np.asarray(image.dataobj) > 0).mean(0), 1]
        places = np.argwhere(pixels > 6000)
        slice_numbers = np.array(entry.slice_indices)[places[:, 0]]
        indices = np.column_stack([places[:, 1:], slice_numbers, np.ones(len(places))])
        seen_mm = (np.array(entry.affine) @ indices.T).mean(1)
        np.testing.assert_allclose(seen_mm[:2], brain_mm[:2], atol=4)
