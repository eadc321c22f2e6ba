"""The stage as a user runs it: what is made, what is made again, what is told, what is refused."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fragile_worker import double
from small_volumes import LAYOUT, brain, shard_of, write_cohort, write_nifti
from studies import NAMES, Study, content

from data_prep.__main__ import main
from data_prep.common.files import atomic_file
from data_prep.config import PrepareConfig
from data_prep.executors.local import run_in_processes
from data_prep.store import Store, StoreError
from data_prep.volume.transforms import load_volume

MASK = (brain() > 0).astype(np.uint8)


def image(study: Study, name: str) -> Path:
    return study.root / LAYOUT.replace("{subject}", name)


def listed(study: Study, *more: str, **keys: object) -> list[str]:
    """What a dry run says; it must change nothing."""
    before = study.times()
    lines = study.run(*more, "--prepare.dry_run", **keys).splitlines()
    assert study.times() == before
    assert lines[-1].startswith("dry run: nothing was written")
    assert lines[0].startswith("no prepare.subjects_table")
    return lines[1:-1]


def test_the_store_s_files_and_keys_are_these_and_slices_are_exact(study: Study) -> None:
    store = study.store
    report = {f"report/{name}" for name in ("SHA256SUMS", "index.html", "subjects.csv")}
    shards = {entry.shard for entry in store.entries}
    assert content(study.folder).keys() == {"manifest.json", *report, *shards}
    manifest = json.loads((study.folder / "manifest.json").read_text())
    assert list(manifest) == [
        *("schema_version", "name", "simulated", "configuration", "configuration_digest"),
        *("image_shape", "spacing_mm", "orientation", "plane", "checks_version"),
        *("subjects", "quarantined", "manifest_sha256"),
    ]
    assert (manifest["schema_version"], manifest["image_shape"]) == (1, [1, 32, 32])
    assert manifest["orientation"] == "rows A>P, columns L>R"
    parts = [store.subjects(s) for s in ("train", "validation", "test")]
    assert sorted(e.subject for part in parts for e in part) == NAMES
    config = PrepareConfig(source="hcp", root="raw", size=32, spacing_mm=1.0)
    for entry in store.subjects("all"):
        cut = load_volume(study.root / entry.source, None, config).slices(config)
        pixels = store.slices(entry)
        assert pixels.shape == (len(entry.slice_indices), *store.image_shape)
        assert not pixels.flags.writeable
        np.testing.assert_allclose(pixels / 65535, cut.images, atol=0.5 / 65535 + 1e-7)
        np.testing.assert_allclose(entry.affine, cut.affine)
        assert entry.slice_indices == cut.indices


def test_a_second_run_does_nothing_and_moving_the_files_redoes_nothing(study: Study) -> None:
    before = study.times()
    assert "nothing to do: study is up to date" in study.run()
    assert study.times() == before
    study.root.rename("elsewhere")  # a mount point is no reason to work a night again
    study.run(root="elsewhere")
    assert all(study.times()[f"slices/{name}"] == before[f"slices/{name}"] for name in NAMES)
    assert study.store.manifest["configuration"]["root"] == "elsewhere"


def test_each_change_is_listed_with_whom_it_concerns_and_a_run_does_just_that(
    study: Study,
) -> None:
    """And nobody moves when people come and go."""
    for name in NAMES:
        write_nifti(study.root / name / "mask.nii.gz", MASK)
    keys = {"mask_template": "{subject}/mask.nii.gz"}
    lines = listed(study, **keys)
    names = "201, 202, 203, 204, 205, …"
    assert lines == [
        "to prepare, prepare.mask_template is '{subject}/mask.nii.gz' and was '': 6 subjects: "
        + names.replace("…", "206")
    ]
    study.run(**keys)
    assert listed(study, **keys) == [
        "kept as they are: 6 subjects",
        "nothing to prepare: at most families and splits change",
    ]
    before, stamps = study.store.entries, study.times()
    write_nifti(image(study, "202"), brain(seed=5))
    os.utime(study.root / "203" / "mask.nii.gz", (1, 1))
    shard_of(study.folder, "204").unlink()
    shutil.rmtree(study.root / "205")
    write_cohort(study.root, ["199"])
    write_nifti(study.root / "199" / "mask.nii.gz", MASK)
    expected = [
        "to prepare, new: 1 subject: 199",
        "to prepare, its file changed: 1 subject: 202",
        "to prepare, its mask changed: 1 subject: 203",
        "to prepare, its shard is missing or cut: 1 subject: 204",
        "to remove: 1 subject: 205",
        "kept as they are: 2 subjects",
    ]
    assert listed(study, **keys) == expected
    assert study.run(**keys).splitlines()[1:][: len(expected)] == expected
    now = study.times()
    assert [n for n in NAMES if now.get(f"slices/{n}") == stamps[f"slices/{n}"]] == ["201", "206"]
    assert "slices/205" not in now
    digests = [{e.subject: e.shard_sha256 for e in es} for es in (before, study.store.entries)]
    assert [n for n in NAMES if digests[0][n] != digests[1].get(n)] == ["202", "205"]
    splits = {e.subject: e.split for e in before}
    assert all(e.split == splits.get(e.subject, e.split) for e in study.store.entries)


def test_another_split_rewrites_no_pixel_and_another_size_or_arithmetic_all(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = study.times()
    study.run("--prepare.split.salt", "b")
    assert study.store.manifest["configuration"]["split"]["salt"] == "b"
    assert all(study.times()[f"slices/{name}"] == stamps[f"slices/{name}"] for name in NAMES)
    study.run("--prepare.size=64", "--training.epochs", "5", "--model.x=-1", "--run", "a")
    assert study.store.image_shape == (1, 64, 64)  # the other sections are the pipeline's
    assert all(study.times()[f"slices/{name}"] != stamps[f"slices/{name}"] for name in NAMES)
    monkeypatch.setattr("data_prep.config.TRANSFORM_VERSION", 99)
    lines = listed(study, "--prepare.size=64")
    assert lines[0].startswith("to prepare, the program's arithmetic is 99 and was ")


@pytest.mark.parametrize("loss", ["shard", "cut", "manifest", "interrupted"])
def test_a_damaged_store_is_mended(study: Study, loss: str) -> None:
    before, manifest = content(study.folder), study.folder / "manifest.json"
    shard = shard_of(study.folder, "203")
    if loss == "shard":
        shard.unlink()
    elif loss == "cut":
        shard.write_bytes(shard.read_bytes()[:100])
    elif loss == "manifest":
        manifest.write_text("{")
    else:
        manifest.rename(study.folder / "manifest.partial.json")
    study.run()
    assert content(study.folder) == before


def test_the_quarantined_are_told_and_tolerated_where_the_user_says_so(study: Study) -> None:
    """A missing mask costs one subject; where nobody is usable the store stays as it was."""
    for name in NAMES[1:]:
        write_nifti(study.root / name / "mask.nii.gz", MASK)
    keys = {"mask_template": "{subject}/mask.nii.gz"}
    before = content(study.folder)
    assert "not one of 6 subjects could be" in study.run(mask_template="{subject}/typo", code=2)
    assert content(study.folder) == before
    told = study.run(code=3, **keys)
    (quarantined,) = study.store.quarantined
    assert f"201: mask_missing: {quarantined.message}" in told
    assert "nothing to do" in study.run(code=3, **keys)
    study.run("--prepare.max_quarantined=1", **keys)
    # What failed for a passing reason is tried again.
    manifest = json.loads((study.folder / "manifest.json").read_text())
    manifest["quarantined"][0]["reason"] = "worker_died"
    del manifest["manifest_sha256"]
    (study.folder / "manifest.json").write_text(json.dumps(manifest))
    again = "to prepare, it failed before (worker_died), which may have passed: 1 subject: 201"
    assert listed(study, **keys)[0] == again
    write_nifti(study.root / "201" / "mask.nii.gz", MASK)
    study.run(**keys)


def test_a_first_run_on_nothing_usable_leaves_nothing(raw: Study, work: Path) -> None:
    image(raw, "1").parent.mkdir(parents=True)
    image(raw, "1").write_bytes(b"")
    assert "not one of 1 subject could be prepared (1 empty)" in raw.run(code=2)
    assert not [p for p in work.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_store_keeps_its_split_whatever_rule_drew_it(study: Study) -> None:
    """Through additions, removals and a run that made everything anew."""
    path = study.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    old = dict.fromkeys(NAMES, "test") | {"203": "train"}
    for entry in manifest["subjects"]:
        entry["split"] = old[entry["subject"]]
    del manifest["manifest_sha256"]
    path.write_text(json.dumps(manifest))
    write_cohort(study.root, ["7"])
    study.run(plane="coronal")
    assert {e.subject: e.split for e in study.store.entries} == old | {"7": "validation"}
    image(study, "203").unlink()
    assert "none, where prepare.split asks for 70%: subjects keep" in study.run(plane="coronal")
    assert "train" not in {e.split for e in study.store.entries}
    # Another share, salt or fold draws anew.
    study.run(plane="coronal", split={"fold": "1/5"})
    assert [e.split for e in study.store.entries].count("test") == 2


def test_equal_data_have_equal_digests_wherever_they_lie(study: Study) -> None:
    before = study.store.digest
    shutil.rmtree(study.folder)
    write_cohort(Path("again"), NAMES)
    study.run(root="again")
    assert study.store.digest == before
    study.run("--prepare.split.salt=x", root="again")
    assert study.store.digest != before


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
def test_bad_input_is_one_line_that_names_it(study: Study, case: str) -> None:
    keys, overrides, name = BAD_INPUTS[case]
    before = study.times()
    told = study.run(*overrides, code=2, **keys)
    assert name in told and told.count("\n") == 1
    assert "Traceback" not in told and study.times() == before


@pytest.mark.parametrize(
    ("text", "name"),
    [("prepar: {}", "prepar"), ("prepare: [", "study.yaml"), ("- 1", "study.yaml")],
)
def test_a_bad_configuration_file_is_named(
    text: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.yaml").write_text(text)
    assert main(["--config", str(tmp_path / "study.yaml")]) == 2
    told = capsys.readouterr().err
    assert name in told and told.count("\n") == 1


def test_the_real_command_ends_without_a_traceback(tmp_path: Path) -> None:
    """On a poor machine, too: no backend, ASCII, no home."""
    config = {"source": "hcp", "root": str(write_cohort(tmp_path / "raw", ["Müller"]))}
    config |= {"size": 32, "spacing_mm": 1.0, "track": False, "workers": 1}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"prepare": config}))
    bad = write_nifti(tmp_path / "raw" / LAYOUT.replace("{subject}", "Maß"), brain())
    bad.write_bytes(b"")
    poor = {"MPLBACKEND": "module://nowhere.inline", "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    poor |= {"HOME": "/dev/null", "COLUMNS": "1", "WORK": str(tmp_path / "w")}
    command = [sys.executable, "-m", "data_prep", "--config", str(tmp_path / "study.yaml")]
    for more, code, told in (
        ([], 3, "Ma\\xdf: empty"),
        (["--prepare.root", "no"], 2, "error: prepare.root"),
    ):
        done = subprocess.run(
            [*command, *more],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | poor,
            check=False,
        )
        assert done.returncode == code and told in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_print_config_and_a_dry_run_show_what_would_be_done(raw: Study, work: Path) -> None:
    shown = yaml.safe_load(raw.run("--prepare.size=128", "--print_config"))["prepare"]
    assert (shown["size"], shown["root"]) == (128, "raw")
    people = ["--prepare.source=template_cohort", "--prepare.cohort.people=3"]
    assert main(["--prepare.name=demo", *people, "--prepare.dry_run"]) == 0
    told = raw.capsys.readouterr().out
    assert "to prepare, new: 3 subjects: sim0001, sim0002, sim0003" in told
    assert not work.exists()


def test_two_workers_make_what_one_makes(study: Study) -> None:
    before = content(study.folder)
    shutil.rmtree(study.folder)
    study.run(workers=2)
    assert content(study.folder) == before


def test_a_dying_worker_costs_only_its_own_item() -> None:
    results = run_in_processes(2, double, [1, 2, 103, 4, 5], died=lambda item: -item)
    assert sorted(results) == [-103, 2, 4, 8, 10]


Manifest = dict[str, Any]


def overlap(manifest: Manifest) -> None:
    first, second = manifest["subjects"][:2]
    second["family"] = first["family"]
    first["split"], second["split"] = "train", "test"


def shared_shard(manifest: Manifest) -> None:
    first, second = manifest["subjects"][:2]
    second["shard"] = first["shard"]
    first["split"], second["split"] = "train", "test"


def first(**changes: object) -> Callable[[Manifest], None]:
    return lambda manifest: manifest["subjects"][0].update(changes)


DAMAGED: dict[str, tuple[Callable[[Manifest], object], str]] = {
    "twice": (first(subject="202"), "subject 202 is there twice"),
    "shared shard": (shared_shard, "shard slices/201.* is in test and train"),
    "version": (lambda m: m.update(schema_version=2), "schema version 2"),
    "missing key": (lambda m: m["subjects"][0].pop("family"), "damaged"),
    "outside": (first(shard="../../secret.npy"), "outside the store"),
    "absolute": (first(shard="/etc/hostname"), "outside the store"),
    "absent": (first(shard="slices/absent.npy"), "missing"),
    "overlap": (overlap, "family 201"),
    "by hand": (lambda m: m.update(spacing_mm=2.0), "was changed after it was written"),
}


@pytest.mark.parametrize("case", [*DAMAGED, "", "{", "[]", "null", '"text"', "{}"])
def test_a_damaged_manifest_is_refused(study: Study, case: str) -> None:
    path = study.folder / "manifest.json"
    damage, told = DAMAGED.get(case, (None, ""))
    manifest = json.loads(path.read_text())
    if damage:
        damage(manifest)
    path.write_text(json.dumps(manifest) if damage else case)
    with pytest.raises(StoreError, match=told or "prepare it again"):
        Store.open(study.folder)
    if case == "version":  # made by another version of this program: not ours to overwrite
        before = study.times()
        assert "schema version 2" in study.run(code=2)
        assert study.times() == before


def verify(folder: Path | str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["verify", "--store", str(folder)])
    told = capsys.readouterr()
    return code, told.out + told.err


def test_verify_finds_a_flipped_byte_anywhere(study: Study) -> None:
    draw = random.Random(0)
    for path in sorted(p for p in study.folder.rglob("*") if p.is_file()):
        raw = path.read_bytes()
        for place in {0, len(raw) - 1, *(draw.randrange(len(raw)) for _ in range(40))}:
            damaged = bytearray(raw)
            damaged[place] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            code, told = verify(study.folder, study.capsys)
            assert code == 2 and str(path) in told, (path, place)
        path.write_bytes(raw)
    for store in ("study", study.folder):
        assert verify(store, study.capsys)[0] == 0
    manifest = study.folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    assert study.store.entries  # of the same meaning: of use
    assert verify("study", study.capsys)[0] == 2
    study.run()
    assert verify("study", study.capsys)[0] == 0


def test_verify_names_every_damaged_file_and_strangers_and_preparing_mends(study: Study) -> None:
    before, stamps = content(study.folder), study.times()
    gone, cut, changed = (shard_of(study.folder, name) for name in NAMES[:3])
    gone.unlink()
    cut.write_bytes(b"short")
    raw = changed.read_bytes()
    changed.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    (study.folder / "notes.txt").write_text("mine")
    code, told = verify("study", study.capsys)
    assert code == 2 and "3 damaged" in told and "notes.txt does not belong" in told
    assert all(str(shard) in told for shard in (gone, cut, changed))
    # By name and length alone the third is well; prepare.check reads it.
    study.run()
    assert changed.read_bytes() != raw
    damaged = "to prepare, its shard is damaged: 1 subject: 203"
    assert damaged in listed(study, "--prepare.check")
    assert damaged in study.run("--prepare.check")
    (study.folder / "notes.txt").unlink()
    assert content(study.folder) == before
    assert [n for n in NAMES if study.times()[f"slices/{n}"] == stamps[f"slices/{n}"]] == NAMES[3:]
    stamps = study.times()
    study.run("--prepare.check", "true")
    assert study.times() == stamps


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--store", "no-store"], "there is no prepared store at"),
        ([], "verify needs --store"),
        (["--store", "study", "--quick"], "unknown key --quick"),
    ],
)
def test_a_wrong_call_of_verify_is_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *arguments]) == 2
    shown = capsys.readouterr().err
    assert told in shown and shown.count("\n") == 1


def test_a_store_from_before_shards_had_digests_in_their_names_is_read_and_kept(
    study: Study,
) -> None:
    """A shard lies where the manifest says, however a newer version would call it."""
    old, manifest = study.store.entries[0].shard, study.folder / "manifest.json"
    (study.folder / old).rename(study.folder / "slices/one.npy")
    text = manifest.read_text().replace(old, "slices/one.npy")
    manifest.write_text(text[: text.rindex(",")] + "\n}\n")  # an older version did not seal it
    assert len(study.store.images(study.store.entries[0]))
    study.run()
    assert study.store.entries[0].shard == "slices/one.npy"


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_file(path) as stream:
            stream.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    with atomic_file(path) as stream:
        stream.write(b"new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
