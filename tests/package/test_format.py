"""The format: a round trip changes nothing, damage is refused, nothing is half written.

Graphs are their networks within a stated tolerance, where the project can't be imported.
"""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny_packages
import torch
from tiny_packages import LATENTS, PARTS

from pipeline.errors import InputError
from pipeline.package import format, load, standalone, write
from pipeline.package.format import digest

ROOT = Path(__file__).parents[2]
FILES = {
    "metadata.json", "likelihood.safetensors", *(f"{p}.pt2" for p in PARTS),
    *(f"{p}.safetensors" for p in PARTS),
}  # fmt: skip
make_package = partial(tiny_packages.make_package, floor=0.01)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the blur term on disk. Read only."""
    folder = tmp_path_factory.mktemp("packages") / "tiny"
    errors = write(folder, make_package())
    assert errors is not None and set(errors) == {f"{part}.pt2" for part in PARTS}
    assert all(0 <= error <= 1e-5 for error in errors.values())
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy of that package."""
    return Path(shutil.copytree(written, tmp_path / "package"))


def nothing_left_over(place: Path) -> bool:
    return {path.name for path in place.iterdir()} <= {"package", ".package.lock"}


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


def test_nothing_is_done_twice_and_damage_is_mended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write(folder, make_package()) is None
    (folder / "encoder.pt2").write_bytes(b"damaged")
    monkeypatch.setattr(format, "prove", lambda *_: {"decoder.pt2": 0.0})
    assert write(folder, make_package()) == {"decoder.pt2": 0.0}
    assert write(folder, make_package()) is None
    assert write(folder, make_package("gaussian")) is not None  # another one takes its place
    assert load(folder).term == "gaussian" and not (folder / "kernel_network.pt2").exists()
    assert nothing_left_over(folder.parent)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_crash_leaves_the_package_that_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def crash(*_: Any) -> None:
        raise error

    monkeypatch.setattr(format, "prove", crash)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write(folder, make_package("gaussian"))
    assert load(folder).term == "blur"
    (folder.parent / ".package.new").mkdir(exist_ok=True)  # of a process that was killed
    monkeypatch.setattr(format, "prove", lambda *_: {})
    assert write(folder, make_package("gaussian")) is not None
    assert load(folder).term == "gaussian" and nothing_left_over(folder.parent)


def test_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for place in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(InputError, match="is no decoder package"):
            write(place, make_package())
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# Damage to a copy of the package, and what the one line must name.


def _metadata(change: Callable[[dict[str, Any]], Any], signed: bool = True) -> Any:
    def damage(folder: Path) -> None:
        path = folder / "metadata.json"
        metadata = json.loads(path.read_text())
        change(metadata)
        if signed:  # as a program would that writes packages wrongly
            metadata["digest"] = digest(metadata)
        path.write_text(json.dumps(metadata))

    return damage


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Any:
    def damage(folder: Path) -> None:
        path = folder / "decoder.safetensors"
        weights = safetensors.torch.load(path.read_bytes())
        change(weights)
        _signed(folder, path.name, safetensors.torch.save(weights))

    return damage


def _signed(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    _metadata(lambda m: m["files"].update({name: format._entry(content)}))(folder)


def _inverted_byte(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 255
    path.write_bytes(content)


def _told(key: str, value: Any) -> Any:
    """Another value in metadata.json, with the digest that fits."""
    return _metadata(lambda metadata: metadata.update({key: value}))


def _model(**changes: Any) -> Any:
    return _metadata(lambda metadata: metadata["model"].update(changes))


NAME = "exit.1.weight"
MODEL_SAYS = "decoder.safetensors and the model disagree on "
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no decoder package at"),
    "cut metadata": (lambda f: os.truncate(f / "metadata.json", 100), "metadata.json can't be"),
    "deep": (lambda f: (f / "metadata.json").write_text("[" * 10**5), "metadata.json can't be"),
    "a list": (lambda f: (f / "metadata.json").write_text("[]"), "json describes no decoder"),
    "another format": (_told("format", "x"), "metadata.json describes no decoder package"),
    "schema": (_told("schema_version", 9), "schema version 9"),
    "edited": (_metadata(lambda m: m.update(spacing_mm=1.0), False), "metadata.json is not what"),
    "latent": (_told("latent_size", 4), "latent_size"),
    "no levels": (_model(levels=[]), "model.levels"),
    "unknown key": (_model(depth=3), "depth"),
    "image": (_told("image_shape", [1, 64, 64]), "decoder.safetensors"),
    "null image": (_told("image_shape", None), "metadata.json is damaged"),
    "vast": (_model(width=10**7, max_width=10**7), MODEL_SAYS),
    "no weights": (lambda f: (f / "decoder.safetensors").unlink(), "decoder.safetensors is"),
    "a byte": (_inverted_byte, "encoder.safetensors is not what"),
    "cut": (lambda f: os.truncate(f / "likelihood.safetensors", 9), "likelihood.safetensors is"),
    "shape": (_weights(lambda w: w.update({NAME: w[NAME][:1].clone()})), MODEL_SAYS + NAME),
    "dtype": (_weights(lambda w: w.update({NAME: w[NAME].double()})), MODEL_SAYS + NAME),
    "missing": (_weights(lambda w: w.pop(NAME)), MODEL_SAYS + NAME),
    "extra": (_weights(lambda w: w.update(more=torch.zeros(1))), MODEL_SAYS + "more"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_in_one_line_that_names_it(folder: Path, kind: str) -> None:
    damage, words = DAMAGE[kind]
    damage(folder)
    with pytest.raises(InputError, match=words) as refused:
        load(folder)
    assert "make export" in str(refused.value) and str(folder) in str(refused.value)


class Attack:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_loading_runs_no_code_of_a_package(written: Path, tmp_path: Path) -> None:
    """Pickles in every place that a careless reader would unpickle."""
    mark, folder = tmp_path / "executed", tmp_path / "package"
    plain, saved = pickle.dumps(Attack(mark)), tmp_path / "saved"
    torch.save(Attack(mark), saved)
    for content in (plain, saved.read_bytes()):
        for name in ("decoder.safetensors", "likelihood.safetensors", "metadata.json"):
            for signed in {True, name == "metadata.json"}:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(written, folder)
                if signed and name != "metadata.json":
                    _signed(folder, name, content)
                (folder / name).write_bytes(content)
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


# Graphs


def test_the_graphs_are_the_networks_at_any_batch(written: Path) -> None:
    """Within 1e-5 of the output's largest value: a graph may add in another order."""
    package = make_package()

    def posterior(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        encoded = package.encode(image)
        return encoded.mean, encoded.log_variance

    networks: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
        "decoder": (lambda latent: (package.decode(latent),), (LATENTS,)),
        "encoder": (posterior, (1, 32, 32)),
        "kernel_network": (lambda latent: (package.kernel(latent),), (LATENTS,)),
        "residual": (lambda image: (package.residual(image).deviation,), (1, 32, 32)),
    }
    assert set(networks) == set(PARTS)
    for name, (network, shape) in networks.items():
        run = torch.export.load(written / f"{name}.pt2").module()
        for batch in (1, 3):
            given = torch.randn(batch, *shape)
            outputs, expected = run(given), network(given)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            for left, right in zip(outputs, expected, strict=True):
                assert left.shape == right.shape and left.dtype == right.dtype
                assert (left - right).abs().max() <= 1e-5 * right.abs().max()
        with zipfile.ZipFile(written / f"{name}.pt2") as archive:
            content = b"".join(archive.read(member) for member in archive.namelist())
        assert str(ROOT).encode() not in content and b"site-packages" not in content


def _wrong(graph: format.Graph, path: Path, right: Any = format.write_graph) -> None:
    with torch.no_grad():
        for parameter in graph.network.parameters():
            parameter.mul_(1.001)
        right(graph, path)
        for parameter in graph.network.parameters():
            parameter.div_(1.001)


@pytest.mark.parametrize(
    ("writer", "told"),
    [
        (
            _wrong,
            r"\.pt2: the exported graph differs from its network by .* the output's larg.*1e-",
        ),
        (lambda _, path: path.write_bytes(b"no archive"), "can't be run by torch alone"),
    ],
)
def test_a_graph_that_differs_or_cant_run_is_never_called_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Any, told: str
) -> None:
    monkeypatch.setattr(format, "write_graph", writer)
    with pytest.raises(InputError, match=told) as refused:
        write(tmp_path / "package", make_package())
    assert "nothing was written" in str(refused.value) and "constraints.txt" in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == [".package.lock"]


def test_an_error_is_a_share_of_the_largest_value_and_infinite_where_it_is_not_finite() -> None:
    expected = np.array([[0.0, -4.0], [1.0, 2.0]], np.float32)
    assert standalone.largest_error(expected, expected) == 0
    assert standalone.largest_error(0 * expected, 0 * expected) == 0
    for place in ((0, 0), (0, 1), (1, 1)):
        moved = expected.copy()
        moved[place] += 0.5
        assert standalone.largest_error(1000 * moved, 1000 * expected) == pytest.approx(0.5 / 4)
        for bad in (np.nan, np.inf):
            moved[place] = bad
            for pair in ((moved, expected), (expected, moved), (moved, moved)):
                assert standalone.largest_error(*pair) == np.inf


def test_the_example_of_the_readme_runs_without_the_project(written: Path, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## The decoder package")[2].partition("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    head = Path(standalone.__file__).read_text().partition("def main")[0]
    refused = "try:\n import pipeline\nexcept ModuleNotFoundError as e: print(e)\n"
    script = tmp_path / "example.py"
    script.write_text(f"{head}\nsys.meta_path.insert(0, Blocker())\n{refused}{example}")
    done = subprocess.run(
        [sys.executable, "-I", script, written], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "a package must not need pipeline",
        "(3, 1, 32, 32) 3.2 mm, rows A>P, columns L>R",
    ], done.stderr


def test_without_the_extra_onnx_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx, onnxscript, onnxruntime.*\[onnx\]"):
        write(tmp_path / "package", make_package(), onnx=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_onnx_is_the_network_within_its_tolerance(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    errors = write(tmp_path / "package", make_package(), onnx=True)
    assert errors is not None and all(0 <= error <= 1e-5 for error in errors.values())
    onnx = {f"{part}.onnx" for part in PARTS}
    assert {path.name for path in (tmp_path / "package").iterdir()} == FILES | onnx
    assert set(errors) == onnx | {f"{part}.pt2" for part in PARTS}
    assert write(tmp_path / "package", make_package(), onnx=True) is None
