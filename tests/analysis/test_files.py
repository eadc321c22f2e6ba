"""Slices as NIfTI lie over what was read; folders of results: nothing of before is replaced."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from data_prep.store import Store
from pipeline.analysis.jobs import AnomalyOptions, PackageOptions, image_name, named_folder, results
from pipeline.analysis.problems import (
    finer_affine,
    read_array,
    read_picture,
    write_picture,
    write_stack,
)
from pipeline.errors import InputError

ORIENTATION = "rows A>P, columns L>R"
# A store's affine, its rows to the back, its columns to the right.
AFFINE = np.array([[0, 3.2, 0, -90], [-3.2, 0, 0, 80], [0, 0, 1, -20], [0, 0, 0, 1]], float)


def _write(path: Path, codes: str) -> np.ndarray:
    """The same slice stored in other axes; what RAS position has which value is the same."""
    picture = np.arange(120, dtype=float).reshape(12, 10, 1)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(tuple(codes))
    )
    nib.save(nib.Nifti1Image(picture, AFFINE).as_reoriented(turn), path)
    return picture[:, :, 0]


@pytest.mark.parametrize("codes", ["PRS", "RAS", "LPS", "SRA"])
def test_read_and_written_back_it_is_the_same_file(tmp_path: Path, codes: str) -> None:
    """Finer pixels fill the same field of view: both files' outer corners are at one millimetre."""
    picture = _write(tmp_path / "in.nii.gz", codes)
    read = read_picture(tmp_path / "in.nii.gz", ORIENTATION, 3.2)
    np.testing.assert_array_equal(read.image, picture)
    np.testing.assert_allclose(read.affine, AFFINE)
    write_picture(tmp_path / "out.nii.gz", read.image, read.affine, read)
    fine = np.repeat(np.repeat(read.image, 2, axis=0), 2, axis=1)
    write_picture(tmp_path / "fine.nii.gz", fine, finer_affine(read.affine, 2), read)
    before, after, finer = (nib.load(tmp_path / f"{n}.nii.gz") for n in ("in", "out", "fine"))
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    np.testing.assert_allclose(after.get_fdata(), before.get_fdata(), atol=1e-4)
    corners = []
    for image in (before, finer):
        ends = np.array([[-0.5] * 3, [n - 0.5 for n in image.shape]])
        corners.append(nib.affines.apply_affine(image.affine, ends))
    np.testing.assert_allclose(corners[0], corners[1], atol=1e-4)


def test_slices_that_are_not_evenly_spaced_are_a_file_each(
    tmp_path: Path, tiny_store: Store
) -> None:
    entry = replace(tiny_store.subjects()[0], slice_indices=(40, 44, 49), affine=AFFINE.tolist())
    write_stack(entry, [0, 1], tmp_path, "even", torch.rand(2, 1, 5, 6))
    write_stack(entry, [0, 1, 2], tmp_path, "odd", torch.rand(3, 1, 5, 6))
    names = ["even.nii.gz", "odd-slice-040.nii.gz", "odd-slice-044.nii.gz", "odd-slice-049.nii.gz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name, place, index in (("even", 1, 44), ("odd-slice-049", 0, 49)):
        there = nib.load(tmp_path / f"{name}.nii.gz").affine @ [3, 5, place, 1]
        np.testing.assert_allclose(there, AFFINE @ [3, 5, index, 1], atol=1e-5)


def _damaged(path: Path) -> None:
    _write(path, "PRS")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def _image(values: Any, affine: Any = AFFINE) -> Any:
    return lambda path: nib.save(nib.Nifti1Image(values, affine), path)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "is not there"),
        (lambda path: path.write_bytes(b"no image"), "not compressed"),
        (_image(np.ones((4, 4, 2))), "one slice"),
        (_image(np.full((4, 4, 1), np.nan)), "NaN"),
        (_image(np.ones((4, 4, 1)), np.diag([1.0, 1, 1, 1])), "1 x 1 mm"),
        (_image(np.ones((1, 4, 4)), np.diag([3.2, 3.2, 3.2, 1])), "another plane"),
        (Path.mkdir, "is a folder"),
        (_damaged, ""),
    ],
)
def test_files_that_are_no_slice(tmp_path: Path, make: Any, told: str) -> None:
    make(tmp_path / "x.nii.gz")
    with pytest.raises(InputError, match=told):
        read_picture(tmp_path / "x.nii.gz", ORIENTATION, 3.2)


def test_files_that_are_no_array(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for content, told in ((None, "No such file"), (b"PK\x03\x04 no archive", "can't be read")):
        if content:
            path.write_bytes(content)
        with pytest.raises(InputError, match=told):
            read_array(path)
    with path.open("wb") as stream:
        np.savez(stream, x=np.ones(2))
    with pytest.raises(InputError, match=r"numpy\.save"):
        read_array(path)


FIRST, OTHER = ([SimpleNamespace(metadata={"digest": name})] for name in "ab")


@pytest.fixture
def options(work: Path, monkeypatch: pytest.MonkeyPatch) -> PackageOptions:
    monkeypatch.setattr("pipeline.analysis.jobs.existing_package", lambda _: None)
    return PackageOptions("demo")


def test_a_folder_is_named_by_what_decides_its_results(options: PackageOptions, work: Path) -> None:
    assert named_folder(options, "maps", "s t", "law") == work / "maps/s-t/demo-law-best"
    image = work / "x.nii"
    work.mkdir()
    image.touch()
    other = AnomalyOptions("a/demo", image=str(image), mask=str(image), finest=8, tail="dark")
    named = named_folder(other, "maps", "s")
    assert named == work / "maps/s/demo-finest-8-mask-x.nii-tail-dark"


def test_hcp_s_files_are_named_by_their_subject(tmp_path: Path) -> None:
    """100307/T1w/T1w.nii.gz and 100308/T1w/T1w.nii.gz have one name."""
    root = tmp_path / "study/hcp"  # four levels up is still this test's own
    paths = [root / f"{subject}/T1w/T1w.nii.gz" for subject in ("100307", "100308")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.touch()
    (root / "100307/T1w/b[1].nii").touch()
    assert [image_name(path) for path in paths] == ["100307-T1w", "100308-T1w"]
    assert image_name(root / "100307/T1w/b[1].nii") == "b[1]"


def test_results_go_on_and_those_of_another_question_are_never_replaced(
    options: PackageOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), results(options, out, FIRST, "last") as folder:
        (out / "first").touch()
        busy = pytest.raises(InputError, match="another process is at work")
        with busy, results(options, out, FIRST, "last"):
            raise AssertionError
        raise KeyboardInterrupt
    with results(options, out, FIRST, "last") as folder:
        assert folder == out and (out / "first").exists(), "it goes on"
        (out / "last").touch()
    assert {path.name for path in out.iterdir()} == {"first", "last", "question.json"}
    with results(options, out, FIRST, "last") as folder:
        assert folder is None and "nothing has changed" in capsys.readouterr().out
    with results(options, out, OTHER, "last") as folder:
        assert folder is not None and folder != out and folder.name.startswith("out-")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/scores.csv").write_text("student,grade\n")
    for place in (out, tmp_path / "mine"):
        given = replace(options, output=str(place))
        with pytest.raises(InputError, match="new folder"), results(given, out, OTHER, "last"):
            raise AssertionError
