"""CelebA and CIFAR-10: every image arrives, official splits hold, and a pickle runs nothing."""

import builtins
import io
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from studies import content

from data_prep.__main__ import main
from data_prep.common.errors import VolumeError
from data_prep.sources.image_sets import IMAGES, PARTITION, TEST, TRAINING, decode
from data_prep.store import Store

CIFAR10 = Path(__file__).parents[2].parent / "shared/data/cifar-10-batches-py"
COUNT = 600  # images of a batch
SPLITS = [0] * 20 + [1] * 5 + [2] * 5  # of CelebA's images


def jpeg(seed: int, size: tuple[int, int] = (178, 218), mode: str = "RGB") -> bytes:
    """A picture of coarse noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize(size).convert(mode).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def name(row: int) -> str:
    return f"{row + 1:06d}.jpg"


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """30 images in the official layout: 20 for training, 5 for validation, 5 for the test."""
    root = tmp_path / "celeba"
    (root / IMAGES).mkdir(parents=True)
    for row in range(len(SPLITS)):
        (root / IMAGES / name(row)).write_bytes(jpeg(row))
    lines = [f"{name(row)} {split}\n" for row, split in enumerate(SPLITS)]
    (root / PARTITION).write_text("".join(lines))
    return root


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """Six small batches as a newer Python and numpy save them."""
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    for seed, batch in enumerate([*TRAINING, *TEST]):
        write_batch(root / batch, seed)
    return root


def write_batch(path: Path, seed: int, count: int = COUNT, **changes: Any) -> None:
    """A batch of noise; `changes` replace its parts."""
    random = np.random.default_rng(seed)
    batch = {
        b"data": random.integers(0, 256, (count, 3072), np.uint8),
        b"labels": random.integers(0, 10, count).tolist(),
    }
    changed = batch | {key.encode(): value for key, value in changes.items()}
    # Of Python 3 the protocol that is nearest to the published files.
    path.write_bytes(pickle.dumps(changed, protocol=2))


def prepare(root: Path, *more: str, code: int = 0) -> None:
    """The store `set`, of the set that the folder holds."""
    cifar = ["--prepare.size=32", "--prepare.validation_images=700"]
    source = "celeba" if root.name == "celeba" else "cifar10"
    arguments = ["--prepare.name=set", f"--prepare.source={source}", f"--prepare.root={root}"]
    arguments += [] if source == "celeba" else cifar
    assert main([*arguments, "--prepare.workers=1", "--prepare.track=false", *more]) == code


def refused(
    capsys: pytest.CaptureFixture[str], root: Path, *more: str, attacked: Path | None = None
) -> str:
    """The one line of a preparation that ends with exit code 2."""
    prepare(root, *more, code=2)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "Traceback" not in told
    assert attacked is None or not attacked.exists()
    return told


@pytest.fixture
def folder(work: Path) -> Path:
    return work / "stores/set"


def images_and_labels(folder: Path, *splits: str) -> tuple[np.ndarray, list[int]]:
    """All images (n,3,H,W) uint8 and labels of some splits, in the set's order."""
    store, rows = Store.open(folder), []
    for split in splits:
        for entry in store.subjects(split):
            pixels = store.slices(entry)
            assert (pixels % 257 == 0).all()
            images = (pixels // 257).astype(np.uint8)
            rows += zip(entry.slice_indices, images, entry.labels or [0] * 999, strict=False)
    rows.sort(key=lambda row: row[0])
    assert [number for number, *_ in rows] == list(range(rows[0][0], rows[0][0] + len(rows)))
    return np.stack([image for _, image, _ in rows]), [label for *_, label in rows]


def test_cifar_s_round_trip_equals_torchvision_s_pixels_and_labels(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not CIFAR10.is_dir():
        pytest.skip(f"the CIFAR-10 batches are not at {CIFAR10}")
    from torchvision.datasets import CIFAR10 as Torchvisions
    from torchvision.datasets import cifar

    # The batches at hand were re-encoded, so the published MD5 sums can't hold.
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)
    prepare(CIFAR10, "--prepare.validation_images", "5000")
    for train, splits in ((True, ("train", "validation")), (False, ("test",))):
        expected = Torchvisions(CIFAR10.parent, train=train)
        images, labels = images_and_labels(folder, *splits)
        np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), expected.data)
        assert labels == expected.targets


def test_every_byte_of_a_batch_arrives_in_its_split_and_blocks_keep_apart(
    cifar: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder above will do; the last training images are validation."""
    prepare(cifar.parent)
    said = capsys.readouterr().out
    for batch, md5 in (TRAINING | TEST).items():
        assert f"warning: {batch} is not the published file: its MD5 is" in said and md5 in said
    for batches, splits in ((TRAINING, ("train", "validation")), (TEST, ("test",))):
        read = [pickle.loads((cifar / batch).read_bytes()) for batch in batches]
        images, labels = images_and_labels(folder, *splits)
        expected = np.concatenate([batch[b"data"] for batch in read])
        np.testing.assert_array_equal(images.reshape(-1, 3072), expected)
        assert labels == [label for batch in read for label in batch[b"labels"]]
    store = Store.open(folder)
    validation = [n for e in store.subjects("validation") for n in e.slice_indices]
    assert sorted(validation) == list(range(2300, 3000))
    for entry in store.entries:
        assert len(entry.slice_indices) <= 500
        assert entry.family == entry.subject == f"{entry.split}-{entry.slice_indices[0]:06d}"
    # Blocks of one file are still told apart, or validation would count as trained on.
    assert len({e.source_sha256 for e in store.entries}) == len(store.entries)
    assert (store.plane, store.image_shape, store.spacing_mm) == ("image", (3, 32, 32), 1.0)


@pytest.mark.parametrize("size", [64, 256])
def test_celeba_s_official_split_is_kept_and_every_image_arrives(
    celeba: Path, folder: Path, size: int
) -> None:
    prepare(celeba, f"--prepare.size={size}")
    for code, split in enumerate(("train", "validation", "test")):
        images, _ = images_and_labels(folder, split)
        rows = [row for row, part in enumerate(SPLITS) if part == code]
        for row, image in zip(rows, images, strict=True):
            raw = (celeba / IMAGES / name(row)).read_bytes()
            np.testing.assert_array_equal(image, decode(raw, "", 148, size))
    store = Store.open(folder)
    assert store.image_shape == (3, size, size)
    assert all((e.labels, e.family) == ((), e.subject) for e in store.entries)


def test_the_crop_is_central_and_its_pixels_are_pillow_s() -> None:
    """Only what lies within the central square is seen, and its edge lies at the picture's."""
    for crop in (148, 178, 100):
        picture = np.zeros((218, 178, 3), np.uint8)
        top, left = (218 - crop) // 2, (178 - crop) // 2
        picture[top : top + crop, left : left + crop] = 255
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=100, subsampling=0)
        assert decode(stream.getvalue(), "", crop, 64).min() > 250
        assert decode(stream.getvalue(), "", 0, 64)[:, 0].max() < (250 if crop < 178 else 256)
    raw = jpeg(3)
    with Image.open(io.BytesIO(raw)) as image:
        expected = np.asarray(image)[45:173, 25:153]
    np.testing.assert_array_equal(decode(raw, "", 128, 128), expected.transpose(2, 0, 1))
    grey = decode(jpeg(1, mode="L"), "", 148, 64)
    assert (grey[0] == grey[1]).all() and (grey[0] == grey[2]).all()
    picture[:, ::2], picture[:, 1::2] = 255, 0  # a fine pattern does not alias
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=100, subsampling=0)
    assert np.ptp(decode(stream.getvalue(), "", 148, 32)[:, 2:-2, 2:-2].astype(int)) < 40


def test_a_truncated_jpeg_is_seen_even_where_pillow_is_told_to_accept_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = jpeg(1)
    for share in (0.02, 0.2, 0.5, 0.9):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        with pytest.raises(VolumeError) as caught:
            decode(raw[: int(share * len(raw))], "000001.jpg", 148, 64)
        assert caught.value.reason == "corrupt"


def test_unusable_images_are_quarantined_one_by_one(
    celeba: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage = {
        1: (jpeg(1)[:900], "corrupt"),
        3: (b"", "empty"),
        5: (b"<html>quota exceeded</html>", "corrupt"),
        7: (jpeg(7, size=(64, 64)), "wrong_size"),
        9: (None, "missing"),
        **dict.fromkeys(range(20, 25), (b"no image", "corrupt")),  # a whole block
    }
    for row, (raw, _) in damage.items():
        (celeba / IMAGES / name(row)).unlink()
        if raw is not None:
            (celeba / IMAGES / name(row)).write_bytes(raw)
    prepare(celeba, code=3)
    store = Store.open(folder)
    reasons = {q.subject.split("/")[1]: q.reason for q in store.quarantined}
    assert reasons == {name(row): reason for row, (_, reason) in damage.items()}
    assert [entry.split for entry in store.entries] == ["test", "train"]
    assert store.subjects("train")[0].slice_indices == tuple(
        r for r in range(20) if r not in damage
    )
    said = capsys.readouterr().out
    assert "train: 15 images in 1 block" in said
    assert f"train-000000/{name(3)}: empty: {name(3)} has no bytes in it" in said
    before = content(folder)
    prepare(celeba, code=3)
    assert "nothing to do" in capsys.readouterr().out
    prepare(celeba, "--prepare.max_quarantined=10")
    assert content(folder) == before
    for row in damage:
        (celeba / IMAGES / name(row)).write_bytes(jpeg(row))
    prepare(celeba)
    assert "2 blocks prepared, the others kept" in capsys.readouterr().out
    for file in (celeba / IMAGES).iterdir():
        file.write_bytes(b"")
    assert "not one of 30 images could be prepared (30 empty)" in refused(capsys, celeba)
    assert Store.open(folder).entries  # as it was


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
def test_a_bad_partition_file_is_named(
    celeba: Path, capsys: pytest.CaptureFixture[str], text: str | None, told: str
) -> None:
    path = celeba / PARTITION
    path.unlink()
    if text is not None:
        path.write_text(text)
    said = refused(capsys, celeba)
    assert str(path) in said and told in said


def test_only_blocks_of_a_changed_file_are_made_again(
    celeba: Path, cifar: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(celeba)
    before = content(folder)
    prepare(celeba)
    assert "nothing to do: set is up to date" in capsys.readouterr().out
    # Of the same length, and two files that change places: time and size add up to the same.
    first, second = (celeba / IMAGES / name(row) for row in (26, 27))
    os.rename(first, celeba / "aside")
    os.rename(second, first)
    os.rename(celeba / "aside", second)
    prepare(celeba)
    made = content(folder).keys() - before.keys()
    assert [shard.split(".")[0] for shard in made] == ["slices/test-000025"]
    shutil.rmtree(folder)
    prepare(cifar)
    before = content(folder)
    write_batch(cifar / "data_batch_2", seed=77)
    prepare(cifar)
    made = content(folder).keys() - before.keys()
    assert sorted(n.split(".")[0] for n in made) == ["slices/train-000600", "slices/train-001100"]
    # Another length of a batch renumbers what follows.
    write_batch(cifar / "data_batch_1", seed=0, count=100)
    prepare(cifar)
    images_and_labels(folder, "train", "validation")
    shards = {entry.shard for entry in Store.open(folder).entries}
    assert {n for n in content(folder) if n.endswith(".npy")} == shards


@pytest.mark.parametrize("of", ["celeba", "cifar"])
def test_two_workers_make_what_one_makes(
    of: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(of)
    prepare(root)
    one = content(folder)
    shutil.rmtree(folder)
    prepare(root, "--prepare.workers", "2")
    assert content(folder) == one


class Payload:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def attacks(target: Path) -> dict[str, bytes]:
    """Pickles that would write `target` when read by `pickle.load`, in several ways."""
    command = f"touch {target}"
    code = f"open({str(target)!r}, 'w')"
    good = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}
    call = f"(V{command}\ntR".encode()
    array, system = _global("numpy", "ndarray"), _global("os", "system")
    runstring = _global("numpy.testing._private.utils", "runstring")
    build = _global("numpy", "dtype") + b"(N(dV_make\n"
    return {
        "os.system": pickle.dumps(Payload(os.system, command)),
        "beside good data": pickle.dumps(good | {b"x": Payload(os.system, command)}, protocol=2),
        "eval": pickle.dumps(Payload(builtins.eval, code), protocol=2),
        "subprocess": pickle.dumps(Payload(subprocess.check_call, ["touch", str(target)])),
        "posix": _global("posix", "system") + call + b".",
        # Modules of numpy that lead to other things.
        "numpy's os": _global("numpy.core.multiarray", "os") + b".",
        "a name with dots": b"\x80\x04\x8c\x05numpy\x8c\x15ndarray.__init__.__self\x93.",
        "numpy.load": pickle.dumps(Payload(np.fromfile, str(target))),
        "numpy test runner": runstring + f"(V{code}\n(dtR.".encode(),
        # A good name is kept in the memo, a bad one comes back under its number.
        "memo": array + b"p0\n0" + system + b"p0\n0g0\n" + call + b".",
        "getattr": _global("builtins", "getattr") + b"(" + array + b"V__class__\ntR.",
        # State given to a name that may be used, to change what it does.
        "build on a name": build + system + b"stb" + call + b".",
        "build on a name, no global": build + b"V1\nstb.",
        "inst": b"(V" + command.encode() + b"\nios\nsystem\n.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Pnobody\n.",
        "other encoding": _global("_codecs", "encode") + b"(Vabc\nVrot13\ntR.",
        "objects in an array": pickle.dumps({b"data": np.array([print, None])}, protocol=2),
    }


@pytest.mark.parametrize("attack", attacks(Path("x")))
def test_a_malicious_pickle_is_refused_without_running_and_leaves_the_reader_as_it_was(
    cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], attack: str
) -> None:
    target = tmp_path / "written"
    path = cifar / ("data_batch_1" if len(attack) % 2 else "test_batch")
    good = path.read_bytes()
    path.write_bytes(attacks(target)[attack])
    assert str(path) in refused(capsys, cifar, attacked=target)
    path.write_bytes(good)
    (cifar / "batches.meta").write_bytes(attacks(target)[attack])  # is never opened
    prepare(cifar)
    assert not target.exists()


def test_the_attacks_are_real(tmp_path: Path) -> None:
    for attack in ("os.system", "beside good data", "eval", "posix", "memo", "inst"):
        target = tmp_path / attack.replace(" ", "-").replace(".", "-")
        pickle.loads(attacks(target)[attack])
        assert target.exists(), attack


WRONG: dict[str, dict[str, Any]] = {
    "no labels": {"labels": None},
    "too few labels": {"labels": [1, 2, 3]},
    "a label of ten": {"labels": [10] * COUNT},
    "labels that are text": {"labels": ["1"] * COUNT},
    "no data": {"data": None},
    "another width": {"data": np.zeros((COUNT, 1024), np.uint8)},
    "another type": {"data": np.zeros((COUNT, 3072), np.int8)},
    "another order": {"data": np.asfortranarray(np.zeros((COUNT, 3072), np.uint8))},
    "no images": {"data": np.zeros((0, 3072), np.uint8), "labels": []},
}


@pytest.mark.parametrize("case", [*WRONG, 0, 0.001, 0.3, 0.9999])
def test_a_batch_of_another_structure_or_cut_short_is_named(
    cifar: Path, capsys: pytest.CaptureFixture[str], case: str | float
) -> None:
    path = cifar / "data_batch_3"
    if isinstance(case, str):
        write_batch(path, 2, **WRONG[case])
    else:
        path.write_bytes(path.read_bytes()[: int(case * path.stat().st_size)])
    assert f"{path} is not a CIFAR-10 batch" in refused(capsys, cifar)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["--prepare.size=64"], "prepare.size must be 32"),
        (["--prepare.split.train=0.8", "--prepare.split.test=0.05"], "prepare.split"),
        (["--prepare.crop=32"], "prepare.crop"),
        (["--prepare.plane=coronal"], "prepare.plane"),
        (["--prepare.validation_images=3000"], "prepare.validation_images"),
        (["--prepare.validation_images=0"], "prepare.validation_images"),
        (["--prepare.root=nowhere"], "prepare.root: there is no folder nowhere"),
        (["--prepare.root="], "prepare.root is not set"),
    ],
)
def test_what_does_not_apply_is_refused_by_name(
    cifar: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], told: str
) -> None:
    assert told in refused(capsys, cifar, *overrides)


def test_what_is_missing_is_named(
    celeba: Path, cifar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(celeba / IMAGES)
    assert f"there is no folder {celeba / IMAGES}" in refused(capsys, celeba)
    for batch in ("data_batch_2", "test_batch"):
        (cifar / batch).unlink()
    assert f"{cifar} lacks data_batch_2, test_batch" in refused(capsys, cifar)


def test_download_is_torchvision_s_own_and_a_failed_one_says_what_to_do_by_hand(
    cifar: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torchvision

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("the network is unreachable")

    def download(root: Path, download: bool) -> None:
        shutil.copytree(cifar, root / "cifar-10-batches-py")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", no_network)
    said = refused(capsys, tmp_path / "new", "--prepare.download", "true")
    assert "the network is unreachable" in said and "give its folder as prepare.root" in said
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", download)
    prepare(tmp_path / "new", "--prepare.download", "true")
    prepare(tmp_path / "new")
