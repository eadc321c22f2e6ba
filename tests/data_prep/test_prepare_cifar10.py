"""CIFAR-10: every byte arrives, official splits hold, and a pickle runs nothing."""

import builtins
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.sources.image_sets import TEST, TRAINING
from data_prep.store import Store

CIFAR10 = Path(__file__).parents[2].parent / "shared/data/cifar-10-batches-py"
IMAGES = 600


@pytest.fixture
def cifar10() -> Path:
    """The batches in their own format, Python 2 pickles."""
    if not CIFAR10.is_dir():
        pytest.skip(f"the CIFAR-10 batches are not at {CIFAR10}")
    return CIFAR10


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Six small batches as a newer Python and numpy save them."""
    root = tmp_path / "raw"
    root.mkdir()
    for seed, name in enumerate([*TRAINING, *TEST]):
        write_batch(root / name, seed)
    return root


def write_batch(path: Path, seed: int, count: int = IMAGES, **changes: Any) -> None:
    """A batch of noise; `changes` replace its parts."""
    random = np.random.default_rng(seed)
    batch = {
        b"data": random.integers(0, 256, (count, 3072), np.uint8),
        b"labels": random.integers(0, 10, count).tolist(),
    }
    changed = batch | {key.encode(): value for key, value in changes.items()}
    # Of Python 3 the protocol that is nearest to the published files.
    path.write_bytes(pickle.dumps(changed, protocol=2))


def configured(root: Path, *more: str) -> list[str]:
    """Arguments for the store `c10`."""
    return [
        *("--prepare.name", "c10", "--prepare.source", "cifar10", "--prepare.size", "32"),
        *("--prepare.root", str(root), "--prepare.workers", "1"),
        *("--prepare.track", "false"),
        *("--prepare.validation_images", "700", *more),
    ]


def stored(work: Path) -> dict[str, bytes]:
    """Every file of the store."""
    folder = work / "stores/c10"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def images_and_labels(store: Store, *splits: str) -> tuple[np.ndarray, list[int]]:
    """All images (n,3,32,32) uint8 and labels of some splits, in the set's order."""
    found = []
    for split in splits:
        for entry in store.subjects(split):
            pixels = store.slices(entry)
            assert (pixels % 257 == 0).all()
            images = (pixels // 257).astype(np.uint8)
            found += zip(entry.slice_indices, images, entry.labels, strict=True)
    found.sort(key=lambda item: item[0])
    assert [number for number, *_ in found] == list(range(len(found)))
    return np.stack([image for _, image, _ in found]), [label for *_, label in found]


def test_the_round_trip_equals_torchvisions_pixels_and_labels(
    cifar10: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10 as Torchvisions
    from torchvision.datasets import cifar

    # The batches at hand were re-encoded, so the published MD5 sums can't hold.
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)
    assert main(configured(cifar10, "--prepare.validation_images", "5000")) == 0
    store = Store.open(work / "stores/c10")
    for train, splits in ((True, ("train", "validation")), (False, ("test",))):
        expected = Torchvisions(cifar10.parent, train=train)
        images, labels = images_and_labels(store, *splits)
        np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), expected.data)
        assert labels == expected.targets
    assert sum(len(e.slice_indices) for e in store.subjects("validation")) == 5000


def test_every_byte_and_label_of_a_batch_arrives(small: Path, work: Path) -> None:
    assert main(configured(small)) == 0
    store = Store.open(work / "stores/c10")
    for names, splits in ((TRAINING, ("train", "validation")), (TEST, ("test",))):
        batches = [pickle.loads((small / name).read_bytes()) for name in names]
        images, labels = images_and_labels(store, *splits)
        expected = np.concatenate([batch[b"data"] for batch in batches])
        np.testing.assert_array_equal(images.reshape(-1, 3072), expected)
        assert labels == [label for batch in batches for label in batch[b"labels"]]
        assert set(np.unique(images)) == set(range(256))


def test_the_last_training_images_are_validation_and_blocks_keep_apart(
    small: Path, work: Path
) -> None:
    assert main(configured(small)) == 0
    store = Store.open(work / "stores/c10")
    numbers = {
        split: sorted(n for e in store.subjects(split) for n in e.slice_indices)
        for split in ("train", "validation", "test")
    }
    assert numbers["train"] == list(range(2300))
    assert numbers["validation"] == list(range(2300, 3000))
    assert numbers["test"] == list(range(600))
    for entry in store.entries:
        assert len(entry.slice_indices) <= 500
        assert entry.family == entry.subject
        assert entry.subject == f"{entry.split}-{entry.slice_indices[0]:06d}"
    # Blocks of one file are still told apart, or validation would count as trained on.
    assert len({e.source_sha256 for e in store.entries}) == len(store.entries)
    assert (store.plane, store.image_shape, store.spacing_mm) == ("image", (3, 32, 32), 1.0)


def test_the_folder_above_will_do(small: Path, work: Path, tmp_path: Path) -> None:
    (tmp_path / "above").mkdir()
    small.rename(tmp_path / "above/cifar-10-batches-py")
    assert main(configured(tmp_path / "above")) == 0


def test_another_md5_is_a_warning_that_names_the_file(
    small: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(configured(small)) == 0
    said = capsys.readouterr().out
    for name, md5 in (TRAINING | TEST).items():
        assert f"warning: {name} is not the published file: its MD5 is" in said and md5 in said


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
    return {
        "os.system": pickle.dumps(Payload(os.system, command)),
        "beside good data": pickle.dumps(good | {b"x": Payload(os.system, command)}, protocol=2),
        "eval": pickle.dumps(Payload(builtins.eval, code), protocol=2),
        "exec": pickle.dumps(Payload(builtins.exec, code), protocol=4),
        "subprocess": pickle.dumps(Payload(subprocess.check_call, ["touch", str(target)])),
        "posix": _global("posix", "system") + call + b".",
        # Modules of numpy that lead to other things.
        "numpy's os": _global("numpy.core.multiarray", "os") + b".",
        "a name with dots": b"\x80\x04\x8c\x05numpy\x8c\x15ndarray.__init__.__self\x93.",
        "numpy.load": pickle.dumps(Payload(np.fromfile, str(target))),
        "numpy test runner": _global("numpy.testing._private.utils", "runstring")
        + f"(V{code}\n(dtR.".encode(),
        # A good name is kept in the memo, a bad one comes back under its number.
        "memo": _global("numpy", "ndarray") + b"p0\n0" + _global("os", "system") + b"p0\n0g0\n"
        + call + b".",
        "getattr": _global("builtins", "getattr") + b"(" + _global("numpy", "ndarray")
        + b"V__class__\ntR.",
        # State given to a name that may be used, to change what it does.
        "build on a name": _global("numpy", "dtype") + b"(N(dV_make\n" + _global("os", "system")
        + b"stb" + call + b".",
        "build on a name, no global": _global("numpy", "dtype") + b"(N(dV_make\nV1\nstb.",
        "inst": b"(V" + command.encode() + b"\nios\nsystem\n.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Pnobody\n.",
        "other encoding": _global("_codecs", "encode") + b"(Vabc\nVrot13\ntR.",
        "objects in an array": pickle.dumps({b"data": np.array([print, None])}, protocol=2),
    }  # fmt: skip


ATTACKS = list(attacks(Path("x")))


@pytest.mark.parametrize("place", ["data_batch_1", "test_batch"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_malicious_pickle_is_refused_without_running(
    small: Path,
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    attack: str,
    place: str,
) -> None:
    target = tmp_path / "written"
    (small / place).write_bytes(attacks(target)[attack])
    assert main(configured(small)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(small / place) in said
    assert not target.exists()
    assert not (work / "stores/c10/manifest.json").exists()


def test_the_attacks_are_real(tmp_path: Path) -> None:
    for name in ("os.system", "beside good data", "eval", "posix", "memo", "inst"):
        target = tmp_path / name.replace(" ", "-").replace(".", "-")
        pickle.loads(attacks(target)[name])
        assert target.exists(), name


def test_a_refused_pickle_leaves_the_reader_as_it_was(small: Path, work: Path) -> None:
    good = (small / "test_batch").read_bytes()
    for attack in ("build on a name", "build on a name, no global"):
        (small / "test_batch").write_bytes(attacks(work)[attack])
        assert main(configured(small)) == 2
    (small / "test_batch").write_bytes(good)
    assert main(configured(small)) == 0


def test_the_batches_meta_is_never_opened(small: Path, work: Path, tmp_path: Path) -> None:
    target = tmp_path / "written"
    (small / "batches.meta").write_bytes(attacks(target)["os.system"])
    assert main(configured(small)) == 0
    assert not target.exists()


WRONG: dict[str, dict[str, Any]] = {
    "no labels": {"labels": None},
    "too few labels": {"labels": [1, 2, 3]},
    "a label of ten": {"labels": [10] * IMAGES},
    "labels that are text": {"labels": ["1"] * IMAGES},
    "no data": {"data": None},
    "data as list": {"data": [1, 2]},
    "another width": {"data": np.zeros((IMAGES, 1024), np.uint8)},
    "another type": {"data": np.zeros((IMAGES, 3072), np.int8)},
    "floats": {"data": np.zeros((IMAGES, 3072))},
    "another order": {"data": np.asfortranarray(np.zeros((IMAGES, 3072), np.uint8))},
    "no images": {"data": np.zeros((0, 3072), np.uint8), "labels": []},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_batch_of_another_structure_is_one_line_that_names_it(
    small: Path, work: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    write_batch(small / "data_batch_3", 2, **WRONG[case])
    assert main(configured(small)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{small / 'data_batch_3'} is not a CIFAR-10 batch" in said


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9999])
def test_a_truncated_batch_is_refused(
    small: Path, work: Path, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    raw = (small / "data_batch_2").read_bytes()
    (small / "data_batch_2").write_bytes(raw[: int(share * len(raw))])
    assert main(configured(small)) == 2
    assert f"{small / 'data_batch_2'} is not a CIFAR-10 batch" in capsys.readouterr().err


def test_missing_batches_are_named(
    small: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("data_batch_2", "test_batch"):
        (small / name).unlink()
    assert main(configured(small)) == 2
    assert f"{small} lacks data_batch_2, test_batch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["--prepare.size", "64"], "prepare.size must be 32"),
        (["--prepare.split.train", "0.8", "--prepare.split.test", "0.05"], "prepare.split"),
        (["--prepare.crop", "32"], "prepare.crop"),
        (["--prepare.plane", "coronal"], "prepare.plane"),
        (["--prepare.validation_images", "3000"], "prepare.validation_images"),
        (["--prepare.validation_images", "0"], "prepare.validation_images"),
        (["--prepare.root", "nowhere"], "prepare.root: there is no folder nowhere"),
        (["--prepare.root", ""], "prepare.root is not set"),
    ],
)
def test_what_does_not_apply_is_refused_by_name(
    small: Path, work: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], told: str
) -> None:
    assert main(configured(small, *overrides)) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_a_second_run_does_nothing_and_a_changed_batch_redoes_only_its_blocks(
    small: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(configured(small)) == 0
    before = stored(work)
    assert main(configured(small)) == 0
    assert "nothing to do: c10 is up to date" in capsys.readouterr().out
    assert stored(work) == before
    write_batch(small / "data_batch_2", seed=77)
    assert main(configured(small)) == 0
    assert "2 blocks prepared, the others kept as they were" in capsys.readouterr().out
    made = sorted(stored(work).keys() - before.keys())
    assert [name.split(".")[0] for name in made] == [
        "slices/train-000600", "slices/train-001100"
    ]  # fmt: skip


def test_another_length_of_a_batch_renumbers_what_follows(small: Path, work: Path) -> None:
    assert main(configured(small)) == 0
    write_batch(small / "data_batch_1", seed=0, count=100)
    assert main(configured(small)) == 0
    store = Store.open(work / "stores/c10")
    images_and_labels(store, "train", "validation")
    shards = {entry.shard for entry in store.entries}
    assert {name for name in stored(work) if name.endswith(".npy")} == shards


def test_two_workers_make_what_one_makes(small: Path, work: Path) -> None:
    assert main(configured(small)) == 0
    one = stored(work)
    shutil.rmtree(work)
    assert main(configured(small, "--prepare.workers", "2")) == 0
    assert stored(work) == one


def test_a_killed_run_goes_on_to_the_same_bytes(small: Path, work: Path, tmp_path: Path) -> None:
    assert main(configured(small)) == 0
    whole = stored(work)
    shutil.rmtree(work)
    command = [sys.executable, "-m", "data_prep", *configured(small)]
    with subprocess.Popen(command, env=os.environ | {"WORK": str(work)}) as process:
        deadline = time.monotonic() + 120
        while not list(work.glob("stores/c10/slices/*.npy")) and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert main(configured(small)) == 0
    assert stored(work) == whole


def test_download_is_torchvisions_own(
    small: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    def download(root: Path, download: bool) -> None:
        assert download
        shutil.copytree(small, root / "cifar-10-batches-py")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", download)
    arguments = configured(tmp_path / "new", "--prepare.download", "true")
    assert main(arguments) == 0
    assert main(configured(tmp_path / "new")) == 0


def test_a_failed_download_says_what_to_do_by_hand(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torchvision

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", no_network)
    assert main(configured(tmp_path / "new", "--prepare.download", "true")) == 2
    said = capsys.readouterr().err
    assert "the network is unreachable" in said and "give its folder as prepare.root" in said
    assert said.count("\n") == 1
