"""CelebA from a tree in the official layout that the test writes itself."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from data_prep.__main__ import main
from data_prep.common.errors import VolumeError
from data_prep.sources.image_sets import decode
from data_prep.store import Store

SPLITS = [0] * 20 + [1] * 5 + [2] * 5


def jpeg(seed: int, size: tuple[int, int] = (178, 218), mode: str = "RGB") -> bytes:
    """A picture of coarse noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize(size).convert(mode).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def name(row: int) -> str:
    return f"{row + 1:06d}.jpg"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """30 images: 20 for training, 5 for validation, 5 for the test."""
    root = tmp_path / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    for row in range(len(SPLITS)):
        (root / "img_align_celeba" / name(row)).write_bytes(jpeg(row))
    lines = [f"{name(row)} {split}\n" for row, split in enumerate(SPLITS)]
    (root / "list_eval_partition.txt").write_text("".join(lines))
    return root


def configured(root: Path, *more: str) -> list[str]:
    """Arguments for the store `faces`."""
    return [
        *("--prepare.name", "faces", "--prepare.source", "celeba", "--prepare.root", str(root)),
        *("--prepare.workers", "1", "--prepare.track", "false", *more),
    ]


def stored(work: Path) -> dict[str, bytes]:
    folder = work / "stores/faces"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("size", [64, 256])
def test_the_official_split_is_kept_and_every_image_arrives(
    root: Path, work: Path, size: int
) -> None:
    assert main(configured(root, "--prepare.size", str(size))) == 0
    store = Store.open(work / "stores/faces")
    assert store.image_shape == (3, size, size)
    rows = {e.split: e.slice_indices for e in store.entries}
    assert rows == {
        "train": tuple(range(20)),
        "validation": tuple(range(20, 25)),
        "test": tuple(range(25, 30)),
    }
    for entry in store.entries:
        for row, pixels in zip(entry.slice_indices, store.slices(entry), strict=True):
            raw = (root / "img_align_celeba" / name(row)).read_bytes()
            np.testing.assert_array_equal(pixels, decode(raw, "", 148, size).astype(int) * 257)
        assert (entry.labels, entry.family) == ((), entry.subject)


def test_the_crop_is_central() -> None:
    """Only what lies within the central square is seen, and its edge lies at the picture's."""
    for crop in (148, 178, 100):
        picture = np.zeros((218, 178, 3), np.uint8)
        top, left = (218 - crop) // 2, (178 - crop) // 2
        picture[top : top + crop, left : left + crop] = 255
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=100, subsampling=0)
        seen = decode(stream.getvalue(), "", crop, 64)
        assert seen.min() > 250
        assert decode(stream.getvalue(), "", 0, 64)[:, 0].max() < (250 if crop < 178 else 256)


def test_without_resizing_pixels_are_pillows() -> None:
    raw = jpeg(3)
    with Image.open(io.BytesIO(raw)) as image:
        expected = np.asarray(image)[45:173, 25:153]
    np.testing.assert_array_equal(decode(raw, "", 128, 128), expected.transpose(2, 0, 1))


def test_a_fine_pattern_does_not_alias() -> None:
    picture = np.zeros((218, 178, 3), np.uint8)
    picture[:, ::2] = 255
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=100, subsampling=0)
    assert np.ptp(decode(stream.getvalue(), "", 148, 32)[:, 2:-2, 2:-2].astype(int)) < 40


def test_a_grey_jpeg_has_three_equal_channels() -> None:
    seen = decode(jpeg(1, mode="L"), "", 148, 64)
    assert (seen[0] == seen[1]).all() and (seen[0] == seen[2]).all()


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_a_truncated_jpeg_is_found_even_where_pillow_is_told_to_accept_it(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    raw = jpeg(1)
    with pytest.raises(VolumeError) as caught:
        decode(raw[: int(share * len(raw))], "000001.jpg", 148, 64)
    assert caught.value.reason == "corrupt"


def test_unusable_images_are_quarantined_one_by_one(
    root: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = root / "img_align_celeba"
    (images / name(1)).write_bytes(jpeg(1)[:900])
    (images / name(3)).write_bytes(b"")
    (images / name(5)).write_bytes(b"<html>quota exceeded</html>")
    (images / name(7)).write_bytes(jpeg(7, size=(64, 64)))
    (images / name(9)).unlink()
    assert main(configured(root)) == 3
    store = Store.open(work / "stores/faces")
    assert {q.subject.split("/")[1]: q.reason for q in store.quarantined} == {
        name(1): "corrupt",
        name(3): "empty",
        name(5): "corrupt",
        name(7): "wrong_size",
        name(9): "missing",
    }
    (train,) = store.subjects("train")
    assert train.slice_indices == tuple(r for r in range(20) if r not in (1, 3, 5, 7, 9))
    said = capsys.readouterr().out
    assert "train: 15 images in 1 block" in said
    assert f"train-000000/{name(3)}: empty: {name(3)} has no bytes in it" in said
    before = stored(work)
    assert main(configured(root)) == 3
    assert "nothing to do" in capsys.readouterr().out
    assert main(configured(root, "--prepare.max_quarantined", "5")) == 0
    assert stored(work) == before
    for row in (1, 3, 5, 7, 9):
        (images / name(row)).write_bytes(jpeg(row))
    assert main(configured(root)) == 0
    assert "1 block prepared, the others kept" in capsys.readouterr().out


def test_where_a_whole_block_is_bad_the_others_finish(
    root: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in range(20, 25):
        (root / "img_align_celeba" / name(row)).write_bytes(b"no image")
    assert main(configured(root)) == 3
    assert [e.split for e in Store.open(work / "stores/faces").entries] == ["test", "train"]
    assert main(configured(root)) == 3
    assert "nothing to do" in capsys.readouterr().out


def test_where_no_image_is_usable_there_is_no_store(
    root: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (root / "img_align_celeba").iterdir():
        file.write_bytes(b"")
    assert main(configured(root)) == 2
    assert "not one of 30 images could be prepared (30 empty)" in capsys.readouterr().err
    assert not [p for p in work.rglob("*") if p.is_file() and p.suffix != ".lock"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        ("", "is empty"),
        ("000001.jpg 0\n000002.jpg\n", "line 2"),
        ("000001.jpg 0\n000002.jpg 3\n", "line 2"),
        ("../000001.jpg 0\n", "line 1"),
        ("000001.jpg,0\n", "line 1"),
        ("000001.jpg 0\n000001.jpg 1\n", "line 2 names 000001.jpg a second time"),
    ],
)
def test_a_bad_partition_file_is_one_line_that_names_it(
    root: Path, capsys: pytest.CaptureFixture[str], text: str | None, told: str
) -> None:
    path = root / "list_eval_partition.txt"
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert main(configured(root)) == 2
    said = capsys.readouterr().err
    assert str(path) in said and told in said and said.count("\n") == 1


def test_a_missing_image_folder_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / "img_align_celeba")
    assert main(configured(root)) == 2
    assert f"there is no folder {root / 'img_align_celeba'}" in capsys.readouterr().err


def test_only_the_block_of_a_changed_image_is_made_again(root: Path, work: Path) -> None:
    assert main(configured(root)) == 0
    before = stored(work)
    # Of the same length, and two files that change places: time and size add up to the same.
    first, second = (root / "img_align_celeba" / name(row) for row in (26, 27))
    os.rename(first, root / "aside")
    os.rename(second, first)
    os.rename(root / "aside", second)
    assert main(configured(root)) == 0
    made = stored(work).keys() - before.keys()
    assert [name.split(".")[0] for name in made] == ["slices/test-000025"]


def test_two_workers_in_the_folder_above_make_what_one_makes(root: Path, work: Path) -> None:
    assert main(configured(root)) == 0
    one = {k: v for k, v in stored(work).items() if k != "manifest.json"}
    shutil.rmtree(work)
    assert main([*configured(root.parent), "--prepare.workers", "2"]) == 0
    assert {k: v for k, v in stored(work).items() if k != "manifest.json"} == one
