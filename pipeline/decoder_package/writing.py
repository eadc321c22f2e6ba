"""The writer: a DecoderPackage -> a folder that is there whole or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from pipeline.decoder_package.graphs import Graph, prove, require_onnx, write_onnx, write_pt2
from pipeline.decoder_package.metadata import FORMAT, METADATA, digest
from pipeline.decoder_package.package import DecoderPackage
from pipeline.decoder_package.reading import SUFFIX, parts, shapes
from pipeline.errors import InputError
from pipeline.files import locked, sync_folder, write_text
from pipeline.losses.residual import ResidualLaw
from pipeline.models.vae import VAE

OLD = ".old.tmp"


def write(
    folder: Path,
    package: DecoderPackage,
    *,
    onnx: bool = False,
    notify: Callable[[str], None] = lambda _: None,
) -> dict[str, float] | None:
    """Write a package into `folder`, in place of another package; None where it is there already.

    Returns the largest error of every graph, as a share of its output's largest value. The package
    is on the CPU. With `onnx` every graph is written as .onnx, too. All graphs are compared with
    the networks, in a process without this project, before the folder is there. `notify` gets a
    line before each step that takes seconds.

    Raises InputError if `folder` is something else than a package, or can't be written, or
    `onnx` is asked for and not installed.
    """
    if onnx:
        require_onnx()
    folder = folder.resolve()
    _check_place(folder)
    weights = {
        f"{name}{SUFFIX}": {key: value.contiguous() for key, value in part.state_dict().items()}
        for name, part in parts(package)
    }
    contents = {name: safetensors.torch.save(tensors) for name, tensors in weights.items()}
    metadata = package.metadata | {
        "tensors": {name: shapes(tensors) for name, tensors in weights.items()},
        "files": {name: _entry(content) for name, content in contents.items()},
    }
    graphs = _graphs(package)
    for suffix in (".pt2", ".onnx") if onnx else (".pt2",):
        metadata["files"] |= {f"{graph.name}{suffix}": None for graph in graphs}
    metadata["digest"] = digest(metadata)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if is_whole(folder, metadata["digest"]):
                return None
            with _beside(folder) as new:
                for name, content in contents.items():
                    (new / name).write_bytes(content)
                for graph in graphs:
                    notify(f"graph of the {graph.name.replace('_', ' ')}")
                    write_pt2(graph, new / f"{graph.name}.pt2")
                    if onnx:
                        write_onnx(graph, new / f"{graph.name}.onnx")
                notify("checking the graphs in another process")
                errors = prove(graphs, new)
                for name in metadata["files"]:
                    metadata["files"][name] = _entry((new / name).read_bytes())
                text = json.dumps(metadata, indent=1, ensure_ascii=False, allow_nan=False)
                write_text(new / METADATA, text + "\n")
                _settle(new)
                _put(new, folder)
    except OSError as error:
        raise InputError(
            f"package {folder} can't be written ({error.strerror or error}): make room, or choose "
            "another place with --output"
        ) from error
    package.metadata = metadata
    return errors


def is_whole(folder: Path, wanted: str) -> bool:
    """Whether the package of this digest lies there with every byte that it says it has."""
    try:
        metadata = json.loads((folder / METADATA).read_bytes())
        return (
            metadata["digest"] == digest(metadata) == wanted
            and {path.name for path in folder.iterdir()} == {METADATA, *metadata["files"]}
            and all(
                _entry((folder / name).read_bytes()) == entry
                for name, entry in metadata["files"].items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _graphs(package: DecoderPackage) -> list[Graph]:
    latent, image = (package.latent_size,), package.image_shape
    posterior = ("mean", "log_variance")
    found = [
        Graph("decoder", package.vae.decoder, latent, "latent", ("image",)),
        Graph("encoder", _Posterior(package.vae), image, "image", posterior),
    ]
    if package.kernel_network is not None:
        found.append(Graph("kernel_network", package.kernel_network, latent, "latent", ("kernel",)))
    if package.residual is not None:
        shape = package.image_shape
        outputs = ("standard_deviation",)
        found.append(Graph("residual", _Deviation(package.residual), shape, "image", outputs))
    if package.prior is not None:
        noise = (package.prior.noise_size,)
        found.append(Graph("prior", package.prior, noise, "noise", ("latent",)))
    return found


class _Posterior(nn.Module):
    """Image -> mean and log-variance; the decoder is part of it, as a draw's prior is its state."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(image)
        return posterior.mean, posterior.log_variance


class _Deviation(nn.Module):
    """Decoded image -> the standard deviation of each of its pixels under the fitted law."""

    def __init__(self, law: ResidualLaw) -> None:
        super().__init__()
        self.law = law

    def forward(self, image: Tensor) -> Tensor:
        return self.law.deviation(image)


def _entry(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _check_place(folder: Path) -> None:
    """Raise InputError if something else lies there, which must not be lost."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if json.loads((folder / METADATA).read_bytes()).get("format") == FORMAT:
            return
    raise InputError(
        f"{folder} is there and is no decoder package: choose another place with --output"
    )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time beside `folder`; what a crash of an earlier one left is put right."""
    with locked(folder.with_name(f".{folder.name}.lock")):
        old = folder.with_name(f".{folder.name}{OLD}")
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        for stale in folder.parent.glob(f".{folder.name}.*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, on its file system, gone at the end."""
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Contents on the disk before any name that promises them; readable as other files are."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _put(new: Path, folder: Path) -> None:
    """`new` in the place of `folder`.

    Two names change one after the other: a crash between them leaves the old package beside its
    place, and the next writer puts it back.
    """
    if folder.exists() and any(folder.iterdir()):
        old = folder.with_name(f".{folder.name}{OLD}")
        os.rename(folder, old)
        os.rename(new, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(new, folder)
    sync_folder(folder.parent)
