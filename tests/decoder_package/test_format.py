"""The format: a round trip changes nothing, damage is refused, nothing is half written."""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_packages import FILES, LATENTS, make_package

from pipeline.decoder_package import load, reading, standalone, write, writing
from pipeline.decoder_package.metadata import digest
from pipeline.errors import InputError

ROOT = Path(__file__).parents[2]


def test_a_round_trip_changes_nothing(written: Path) -> None:
    before, after = make_package(), load(written)
    assert {path.name for path in written.iterdir()} == FILES
    left, right = before.state_dict(), after.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())
    image, latent = torch.rand(2, 1, 32, 32), torch.randn(2, LATENTS)
    assert torch.equal(before.log_likelihood(image, latent), after.log_likelihood(image, latent))
    assert after.prepare_keys == {"size": 32, "lower_percentile": 0.5}
    assert (after.spacing_mm, after.plane) == (3.2, "axial")
    assert not after.training and not any(p.requires_grad for p in after.parameters())


def test_the_weights_are_the_same_bytes_every_time(written: Path) -> None:
    for name, part in reading.parts(make_package()):
        state = {key: value.contiguous() for key, value in part.state_dict().items()}
        again = safetensors.torch.save(dict(reversed(state.items())))
        assert (written / f"{name}.safetensors").read_bytes() == again


def test_nothing_is_done_twice_and_damage_is_mended(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(written, folder)
    assert write(folder, make_package()) is None
    (folder / "encoder.pt2").write_bytes(b"damaged")
    monkeypatch.setattr(writing, "prove", lambda *_: {"decoder.pt2": 0.0})
    assert write(folder, make_package()) == {"decoder.pt2": 0.0}
    assert write(folder, make_package()) is None
    assert write(folder, make_package("gaussian")) is not None  # another one takes its place
    assert load(folder).term == "gaussian" and not (folder / "kernel_network.pt2").exists()
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["package"]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_crash_leaves_the_package_that_was_there(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(written, folder)

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, "prove", crash)
        with pytest.raises(KeyboardInterrupt):
            write(folder, make_package("gaussian"))
    assert load(folder).term == "blur"
    (tmp_path / ".package.left.tmp").mkdir()  # of a process that was killed
    monkeypatch.setattr(writing, "prove", lambda *_: {})
    assert write(folder, make_package("gaussian")) is not None
    assert load(folder).term == "gaussian"
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["package"]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_crash_between_the_two_names_is_put_right_by_the_next_writer(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(written, folder)
    monkeypatch.setattr(writing, "prove", lambda *_: {})
    rename, names = os.rename, []

    def crash_at_the_second(*between: Any) -> None:
        names.append(between)
        if len(names) == 2:
            raise KeyboardInterrupt
        rename(*between)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", crash_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            write(folder, make_package("gaussian"))
    assert not folder.exists()
    assert write(folder, make_package()) is None  # the old one is there again, every byte of it
    assert load(folder).term == "blur"
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["package"]
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


def test_a_full_disk_is_told_in_one_line(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(written, folder)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_pt2", full)
    with pytest.raises(InputError, match=r"package .*package can't be written .*No space"):
        write(folder, make_package("gaussian"))
    assert load(folder).term == "blur"


def test_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for place in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(InputError, match="is no decoder package"):
            write(place, make_package())
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# Damage to a copy of the package, and what the one line must name.


def _metadata(change: Callable[[dict[str, Any]], None], signed: bool) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "metadata.json"
        metadata = json.loads(path.read_text())
        change(metadata)
        if signed:  # as a program would that writes packages wrongly
            metadata["digest"] = digest(metadata)
        path.write_text(json.dumps(metadata))

    return damage


def _weights(change: Callable[[dict[str, torch.Tensor]], None], told: bool) -> Any:
    def damage(folder: Path) -> None:
        path = folder / "decoder.safetensors"
        weights = safetensors.torch.load(path.read_bytes())
        change(weights)
        content = safetensors.torch.save(weights)
        path.write_bytes(content)

        def tell(metadata: dict[str, Any]) -> None:
            entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            metadata["files"][path.name] = entry
            if told:
                metadata["tensors"][path.name] = reading.shapes(weights)

        _metadata(tell, signed=True)(folder)

    return damage


def _inverted_byte(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 255
    path.write_bytes(content)


NAME = "exit.1.weight"
MODEL_SAYS = "decoder.safetensors and the model disagree on "


def _told(key: str, value: Any) -> Callable[[Path], None]:
    """Another value in metadata.json, with the digest that fits."""
    return _metadata(lambda metadata: metadata.update({key: value}), True)


def _halved(weights: dict[str, torch.Tensor]) -> None:
    weights[NAME] = weights[NAME][:1].clone()


def _doubled(weights: dict[str, torch.Tensor]) -> None:
    weights[NAME] = weights[NAME].double()


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no decoder package at"),
    "no metadata": (lambda f: (f / "metadata.json").unlink(), "no decoder package at"),
    "cut metadata": (lambda f: os.truncate(f / "metadata.json", 100), "metadata.json can't be"),
    "a list": (
        lambda f: (f / "metadata.json").write_text("[]"),
        "metadata.json describes no decoder package",
    ),
    "another format": (_told("format", "x"), "metadata.json describes no decoder package"),
    "schema": (_told("schema_version", 9), "schema version 9"),
    "edited": (_metadata(lambda m: m.update(spacing_mm=1.0), False), "metadata.json is not what"),
    "latent": (_told("latent_size", 4), "latent_size"),
    "no levels": (_metadata(lambda m: m["model"].update(levels=[]), True), "model.levels"),
    "levels": (_metadata(lambda m: m["model"]["levels"][0].update(side=2), True), "model.levels"),
    "a level's key": (_metadata(lambda m: m["model"]["levels"][0].update(z=2), True), "'z'"),
    "more channels": (
        _metadata(lambda m: m["model"]["levels"][0].update(channels=3), True),
        "latent_size",
    ),
    "model": (_metadata(lambda m: m["model"].update(width=3), True), "model.width"),
    "unknown key": (_metadata(lambda m: m["model"].update(depth=3), True), "depth"),
    "image": (_told("image_shape", [1, 64, 64]), "decoder.safetensors"),
    "no image": (_metadata(lambda m: m.pop("image_shape"), True), "image_shape"),
    "no pixels": (_told("image_shape", [-1, 32, 32]), "metadata.json is damaged"),
    "vast": (
        _metadata(lambda m: m["model"].update(width=10**7, max_width=10**7), True),
        MODEL_SAYS,
    ),
    "deep": (lambda f: (f / "metadata.json").write_text("[" * 10**5), "metadata.json can't be"),
    "spacing": (_told("spacing_mm", -3.0), "spacing_mm"),
    "range": (_told("intensity_range", [0, 255]), "intensity_range"),
    "nobody": (_told("trained_on", None), "trained_on"),
    "null image": (_told("image_shape", None), "metadata.json is damaged"),
    "no weights": (lambda f: (f / "decoder.safetensors").unlink(), "decoder.safetensors can't be"),
    "a byte": (_inverted_byte, "encoder.safetensors is not what"),
    "cut": (lambda f: os.truncate(f / "likelihood.safetensors", 9), "likelihood.safetensors is"),
    "shape": (_weights(_halved, False), "decoder.safetensors and metadata.json disagree"),
    "shape, told": (_weights(_halved, True), MODEL_SAYS + NAME),
    "dtype": (_weights(_doubled, True), MODEL_SAYS + NAME),
    "missing": (_weights(lambda w: w.pop(NAME), True), MODEL_SAYS + NAME),
    "extra": (_weights(lambda w: w.update(more=torch.zeros(1)), True), MODEL_SAYS + "more"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_in_one_line_that_names_it(
    written: Path, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(written, folder)
    damage, words = DAMAGE[kind]
    damage(folder)
    with pytest.raises(InputError, match=words) as refused:
        load(folder)
    said = str(refused.value)
    assert "\n" not in said and "make export" in said and str(tmp_path) in said


class Attack:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("signed", [True, False])
def test_loading_runs_no_code_of_a_package(written: Path, tmp_path: Path, signed: bool) -> None:
    """Pickles in every place that a careless reader would unpickle."""
    mark, folder = tmp_path / "executed", tmp_path / "package"
    plain, saved = pickle.dumps(Attack(mark)), io.BytesIO()
    torch.save(Attack(mark), saved)
    for content in (plain, saved.getvalue()):
        for name in ("decoder.safetensors", "likelihood.safetensors", "metadata.json"):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(written, folder)
            (folder / name).write_bytes(content)
            if signed and name != "metadata.json":
                entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
                _metadata(lambda m, n=name, e=entry: m["files"].update({n: e}), True)(folder)
            with pytest.raises(InputError, match=re.escape(name)):
                load(folder)
        shutil.rmtree(folder)
        shutil.copytree(written, folder)
        for path in folder.glob("*.pt2"):
            path.write_bytes(content)  # not read at all
        load(folder)
    assert not mark.exists()
    pickle.loads(plain)  # the attack itself is sound
    assert mark.exists()


def test_the_example_of_the_readme_runs_without_the_project(written: Path, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## The decoder package")[2]
    (example,) = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 11
    head = Path(standalone.__file__).read_text().partition("def main")[0]
    script = tmp_path / "example.py"
    script.write_text(f"{head}\nsys.meta_path.insert(0, Blocker())\n{example}")
    done = subprocess.run(
        [sys.executable, "-I", script, written], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(3, 1, 32, 32) 3.2 mm, rows A>P, columns L>R"
