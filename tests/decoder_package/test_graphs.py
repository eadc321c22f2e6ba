"""Graphs are their networks within a stated tolerance, where the project can't be imported."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_packages import FILES, LATENTS, PARTS, make_package

from pipeline.decoder_package import graphs, standalone, write, writing
from pipeline.errors import InputError

ROOT = Path(__file__).parents[2]


def test_the_graphs_are_the_networks(written: Path) -> None:
    """The writer has compared them in another process; here at other batches, without it.

    Within 1e-5 of the output's largest value: a graph may add in another order.
    """
    package = make_package()

    def posterior(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = package.encode(image)
        return found.mean, found.log_variance

    networks: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
        "decoder": (lambda latent: (package.decode(latent),), (LATENTS,)),
        "encoder": (posterior, (1, 32, 32)),
        "kernel_network": (lambda latent: (package.kernel(latent),), (LATENTS,)),
        "residual": (lambda image: (package.residual(image).deviation,), (1, 32, 32)),
    }
    assert set(networks) == set(PARTS)
    for name, (network, shape) in networks.items():
        run = torch.export.load(written / f"{name}.pt2").module()
        for batch in (1, 3, 5):
            given = torch.randn(batch, *shape)
            found, expected = run(given), network(given)
            found = found if isinstance(found, tuple) else (found,)
            for left, right in zip(found, expected, strict=True):
                assert left.shape == right.shape and left.dtype == right.dtype
                assert (left - right).abs().max() <= 1e-5 * right.abs().max()


def test_every_graph_s_error_is_told_and_within_the_tolerance(written: Path) -> None:
    assert graphs.TOLERANCE == 1e-5
    errors = graphs.prove(writing._graphs(make_package()), written)
    assert set(errors) == {f"{part}.pt2" for part in PARTS}
    assert all(0 <= error <= 1e-5 for error in errors.values())


def test_the_graphs_hold_no_path_of_this_machine(written: Path) -> None:
    for name in PARTS:
        with zipfile.ZipFile(written / f"{name}.pt2") as archive:
            content = b"".join(archive.read(member) for member in archive.namelist())
        assert str(ROOT).encode() not in content and b"site-packages" not in content


def test_a_graph_that_differs_is_never_called_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(graph: graphs.Graph, path: Path) -> None:
        other = torch.nn.Sequential(graph.network, torch.nn.Identity())
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.001)
            right(graphs.Graph(graph.name, other, graph.shape, graph.input, graph.outputs), path)
            for parameter in other.parameters():
                parameter.div_(1.001)

    right = graphs.write_pt2
    monkeypatch.setattr(writing, "write_pt2", wrong)
    said = (
        r"\.pt2-\d: the exported graph differs from its network by .* the output's largest.*1e-05"
    )
    with pytest.raises(InputError, match=said) as refused:
        write(tmp_path / "package", make_package())
    assert "constraints.txt" in str(refused.value) and "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] in ([], [".package.lock"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_no_proof(bad: float) -> None:
    fine, spoilt = np.ones(3, np.float32), np.array([1, bad, 1], np.float32)
    assert standalone.largest_error(fine, fine) == 0
    assert standalone.largest_error(0 * fine, 0 * fine) == 0
    for found, expected in ((spoilt, fine), (fine, spoilt), (spoilt, spoilt)):
        assert standalone.largest_error(found, expected) == np.inf


def test_an_error_is_told_as_a_share_of_the_largest_value() -> None:
    expected = np.array([[0.0, -4.0], [1.0, 2.0]], np.float32)
    for moved in ((0, 0), (0, 1), (1, 1)):  # wherever it is
        found = expected.copy()
        found[moved] += 0.5
        assert standalone.largest_error(found, expected) == pytest.approx(0.5 / 4)
        assert standalone.largest_error(1000 * found, 1000 * expected) == pytest.approx(0.5 / 4)


def test_a_graph_that_torch_alone_can_not_run_is_never_called_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "write_pt2", lambda _, path: path.write_bytes(b"no archive"))
    with pytest.raises(InputError, match="can't be run by torch alone") as refused:
        write(tmp_path / "package", make_package())
    assert "nothing was written" in str(refused.value) and "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] in ([], [".package.lock"])


def test_the_lone_process_can_not_import_the_project() -> None:
    code = (
        f"import runpy, sys; runpy.run_path({standalone.__file__!r})['Blocker']; "
        f"exec(open({standalone.__file__!r}).read().partition('def main')[0]); "
        "sys.meta_path.insert(0, Blocker()); import pipeline"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "a package must not need pipeline" in done.stderr


def test_without_the_extra_onnx_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx, onnxscript, onnxruntime.*\[onnx\]"):
        write(tmp_path / "package", make_package(), onnx=True)
    assert [path.name for path in tmp_path.iterdir()] in ([], [".package.lock"])


@pytest.mark.slow
def test_onnx_is_the_network_within_its_tolerance(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "package"
    errors = write(folder, make_package(), onnx=True)
    assert errors is not None
    assert set(errors) == {f"{part}.{suffix}" for part in PARTS for suffix in ("pt2", "onnx")}
    assert all(0 <= error <= 1e-5 for error in errors.values())
    assert {path.name for path in folder.iterdir()} == FILES | {f"{p}.onnx" for p in PARTS}
    assert write(folder, make_package(), onnx=True) is None
