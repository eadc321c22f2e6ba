"""The package's folder: metadata.json, weights and graphs; its writer and its reader.

The keys of a MONAI bundle (docs.monai.io, "MONAI Bundle Specification") come first in
metadata.json, so that tools for bundles can show it; those that `load` needs stand beside them.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata as installed
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from data_prep.common.wording import command
from pipeline.errors import InputError
from pipeline.files import existing_package, find_folder, is_address, locked, swapped_in, write_json
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import ModelConfig
from pipeline.package import standalone
from pipeline.package.package import DecoderPackage, hashed

FORMAT = "sharp-vae-decoder-package"
SCHEMA_VERSION = 3
METADATA, SUFFIX = "metadata.json", ".safetensors"
INTENSITY_RANGE = (0.0, 1.0)
# Of a package, where nothing is said.
FACTS: dict[str, Any] = {
    "authors": "not stated",
    "copyright": "not stated",
    "spacing_mm": 1.0,
    "orientation": "",
    "plane": "",
    "prior": None,
    "residual": None,
    "prepare": {},
    "run": {},
    "store": {},
    "evaluation": None,
    "trained_on": {},
}
# What `monai.bundle verify_metadata` checks a bundle's metadata by.
MONAI_SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
PAPER = (
    "Bredell, Flouris, Chaitanya, Erdil, Konukoglu: Explicitly Minimizing the Blur Error of "
    "Variational Autoencoders. ICLR 2023, arXiv 2304.05939"
)
# A part's file -> the module's place; networks have graphs beside their weights.
PARTS = {
    "decoder": "vae.decoder",
    "encoder": "vae.encoder",
    "kernel_network": "kernel_network",
    "likelihood": "density",
    "prior": "prior",
    "residual": "residual",
}
# Not part of the digest: a graph's archive holds times, and its weights are in it already.
GRAPHS = (".pt2", ".onnx")
# Batches of the check; neither is the batch that a graph is traced with.
BATCHES, TRACED = (1, 5), 2
# What the tracer leaves of `at_least_single`: it has no effect, but ties the graph to the CPU.
TIED = (torch.ops.aten._assert_tensor_metadata.default, torch.ops.aten.promote_types.default)
# Largest error of a graph against its network, as a share of the output's largest value. Both are
# float32, and in two processes the same sum may be taken in another order.
TOLERANCE = 1e-5
OTHER_TORCH = "nothing was written; try with the versions of torch and onnx in constraints.txt"


def describe(
    image_shape: tuple[int, int, int],
    model: ModelConfig,
    likelihood: LikelihoodConfig,
    **facts: Any,
) -> dict[str, Any]:
    """The metadata of a package before its files are known.

    image_shape (C,H,W); facts: those of FACTS that are known. prior: pieces and rank of a fitted
    one; residual: the floor of the fitted law of the residuals; spacing_mm: in-plane pixel size;
    prepare: the store's recorded configuration; run: name, id, checkpoint; store: name, digest,
    simulated; evaluation: its metrics; trained_on: see `hashed_subjects`; authors, copyright: of
    the trained decoder. Numbers that are not finite become null.
    """
    channels, *spatial = image_shape
    latent = {"type": "latent", "format": "latent", "num_channels": model.latent_size}
    image = {"type": "image", "format": "magnitude", "num_channels": channels}
    real = {"dtype": "float32", "is_patch_data": False}
    latent |= real | {"spatial_shape": [], "value_range": [], "channel_def": {"0": "prior N(0, I)"}}
    image |= real | {"spatial_shape": spatial, "value_range": INTENSITY_RANGE}
    image |= {"channel_def": {"0": "intensity"}}
    facts = FACTS | facts
    metadata = {
        "schema": MONAI_SCHEMA,
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "version": _version("sharp-vae-mri"),
        "name": f"decoder of {facts['run'].get('name') or 'a VAE'}",
        "task": "Generative model of brain MRI slices: decoder, encoder and likelihood of a "
        "variational autoencoder",
        "description": f"Trained under the reconstruction term {likelihood.term}",
        "references": [PAPER],
        "intended_use": "Research. Not a medical device, not validated for diagnosis.",
        "monai_version": _version("monai"),
        "pytorch_version": torch.__version__,
        "numpy_version": np.__version__,
        "python_version": platform.python_version(),
        "required_packages_version": {"safetensors": _version("safetensors")},
        "network_data_format": {"inputs": {"latent": latent}, "outputs": {"image": image}},
        "image_shape": image_shape,
        "latent_size": model.latent_size,
        "intensity_range": INTENSITY_RANGE,
        "model": asdict(model),
        # A path of this machine does not belong in a package.
        "likelihood": asdict(replace(likelihood, vgg_weights="")),
    }
    return json.loads(json.dumps(metadata | facts), parse_constant=lambda _: None)


def hashed_subjects(subjects: Iterable[Mapping[str, str]]) -> dict[str, Any]:
    """Training subjects, so that an analysis can refuse them: SHA-256 of names, sorted.

    subjects: subject, family, source_sha256 of each. A hash hides names at a glance; it does not
    protect them, because all names of six digits can be tried.
    """
    subjects = list(subjects)
    names = {key: sorted({hashed(who[key]) for who in subjects}) for key in ("subject", "family")}
    files = sorted({who["source_sha256"] for who in subjects})
    return {"people": len(subjects), **names, "source_sha256": files}


def digest(metadata: Mapping[str, Any]) -> str:
    """SHA-256 of a package: all of its metadata but the digests of its graphs."""
    kept = {key: value for key, value in metadata.items() if key not in ("digest", "files")}
    kept["files"] = {
        name: None if name.endswith(GRAPHS) else entry
        for name, entry in metadata.get("files", {}).items()
    }
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return installed.version(name)
    except installed.PackageNotFoundError:
        return ""


# Reading


def open_package(source: str, device: str = "cpu") -> DecoderPackage:
    """A decoder package by name under WORK/packages, by path, or by its address in MLflow.

    Raises:
        InputError: there is none, or it is damaged.

    Example:
        >>> package = open_package("demo")
        >>> package.decode(torch.zeros(1, package.latent_size)).shape
        torch.Size([1, 1, 32, 32])
    """
    return load(source if is_address(source) else find_folder(source, "packages"), device)


def load(source: str | Path, device: str | torch.device = "cpu") -> DecoderPackage:
    """Open a decoder package.

    source: its folder, or an address in MLflow: "models:/NAME/3", "models:/NAME@ALIAS",
    "runs:/ID/decoder". Only metadata.json and the .safetensors files are read, into classes of this
    project: nothing in a package can run code here. (torch.export.load, which a decoder.pt2 needs,
    unpickles the parts of an archive that ask for it; do that with packages you trust.)

    Raises InputError, naming the file and the way out, if there is no package, or its metadata
    and its weights disagree.
    """
    if is_address(str(source)):
        from pipeline.tracking.registry import fetch  # slow to import

        source = fetch(str(source))
    folder = Path(source)
    metadata = read_metadata(folder)
    place = folder / METADATA
    if metadata.get("digest") != digest(metadata):
        raise _refusal(f"{place} is not what was written (its digest differs)")
    try:
        with torch.device("meta"):  # no memory yet: damaged metadata may ask for any amount
            hollow = DecoderPackage(metadata)
        if metadata["latent_size"] != hollow.latent_size:
            raise ValueError("latent_size and model.levels disagree")
        weights = {}
        for name, part in parts(hollow):
            place = folder / f"{name}{SUFFIX}"
            content = place.read_bytes()
            if _entry(content) != metadata["files"][place.name]:
                raise _refusal(f"{place} is not what was written (its SHA-256 differs)")
            weights[name] = safetensors.torch.load(content)
            left, right = shapes(weights[name]), shapes(part.state_dict())
            if other := sorted(key for key in left | right if left.get(key) != right.get(key)):
                raise _refusal(f"{place} and the model disagree on {other[0]}")
        package = DecoderPackage(metadata)
        for name, part in parts(package):
            part.load_state_dict(weights[name])
    except InputError:
        raise
    except Exception as error:  # whatever strange metadata or a strange header causes
        raise _refusal(f"{place} is damaged ({_reason(error)})") from error
    try:
        return package.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device} is not usable here: choose cpu or cuda") from error


def read_metadata(folder: Path) -> dict[str, Any]:
    """metadata.json of a package. Raises InputError if it is not there or can't be read."""
    path = existing_package(folder) / METADATA
    try:
        metadata = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _refusal(f"{path} can't be read ({_reason(error)})") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} describes no decoder package: write one with {command('export', run='…')}"
        )
    if (version := metadata.get("schema_version")) != SCHEMA_VERSION:
        raise _refusal(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}")
    return metadata


def parts(package: DecoderPackage) -> Iterator[tuple[str, nn.Module]]:
    """The parts that a package has, by their files' stem."""
    for name, attribute in PARTS.items():
        part = attrgetter(attribute)(package)
        if part is not None:
            yield name, part


def shapes(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every tensor, as metadata.json has them."""
    return {
        name: {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        for name, value in sorted(weights.items())
    }


def _refusal(words: str) -> InputError:
    return InputError(f"{words}: export it again ({command('export', run='…')})")


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:120]}"


# Writing


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

    Raises InputError if `folder` is something else than a package, or `onnx` is asked for and not
    installed; OSError if it can't be written.
    """
    wanted = ("onnx", "onnxscript", "onnxruntime") if onnx else ()
    if missing := [name for name in wanted if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"--onnx needs {', '.join(missing)}: install the extra (pip install "
            "'sharp-vae-mri[onnx]'), or omit --onnx"
        )
    folder = folder.resolve()
    _refuse_others(folder)
    weights = {
        f"{name}{SUFFIX}": {key: value.contiguous() for key, value in part.state_dict().items()}
        for name, part in parts(package)
    }
    contents = {name: safetensors.torch.save(tensors) for name, tensors in weights.items()}
    graphs = _graphs(package)
    files: dict[str, Any] = {name: _entry(content) for name, content in contents.items()}
    files |= {f"{g.name}{suffix}": None for suffix in GRAPHS[: 1 + onnx] for g in graphs}
    tensors = {name: shapes(tensors) for name, tensors in weights.items()}
    metadata = package.metadata | {"tensors": tensors, "files": files}
    metadata["digest"] = digest(metadata)
    with locked(folder.with_name(f".{folder.name}.lock")):
        if is_whole(folder, metadata["digest"]):
            return None
        with swapped_in(folder) as new:
            for name, content in contents.items():
                (new / name).write_bytes(content)
            for graph in graphs:
                notify(f"graph of the {graph.name.replace('_', ' ')}")
                write_graph(graph, new / f"{graph.name}.pt2")
                if onnx:
                    write_graph(graph, new / f"{graph.name}.onnx")
            notify("checking the graphs in another process")
            errors = prove(graphs, new)
            metadata["files"] = {name: _entry((new / name).read_bytes()) for name in files}
            write_json(new / METADATA, metadata)
    package.metadata = metadata
    return errors


def is_whole(folder: Path, wanted: str) -> bool:
    """Whether the package of this digest lies there with every byte that it says it has."""
    try:
        metadata = json.loads((folder / METADATA).read_bytes())
        there = {path.name: path for path in folder.iterdir() if path.name != METADATA}
        return metadata["digest"] == digest(metadata) == wanted and metadata["files"] == {
            name: _entry(path.read_bytes()) for name, path in there.items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _refuse_others(folder: Path) -> None:
    """Raise InputError if something else lies there, which must not be lost."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if json.loads((folder / METADATA).read_bytes()).get("format") == FORMAT:
            return
    raise InputError(
        f"{folder} is there and is no decoder package: choose another place with --output"
    )


def _entry(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


# Graphs: networks that need nothing of this project


@dataclass(frozen=True)
class Graph:
    """A network to write: its file's stem, the shape of an input without the batch, its names."""

    name: str
    network: nn.Module
    shape: tuple[int, ...]
    input: str
    outputs: tuple[str, ...]

    def example(self, batch: int) -> Tensor:
        """An input (batch, *shape), standard normal, the same every time."""
        return torch.randn((batch, *self.shape), generator=torch.Generator().manual_seed(batch))


class _Function(nn.Module):
    """A function of a module's as a network of its own."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.module, self.forward = module, function


def _graphs(package: DecoderPackage) -> list[Graph]:
    latent, image, vae = (package.latent_size,), package.image_shape, package.vae

    def posterior(image: Tensor) -> tuple[Tensor, Tensor]:
        encoded = vae.encode(image)
        return encoded.mean, encoded.log_variance

    graphs = [
        Graph("decoder", vae.decoder, latent, "latent", ("image",)),
        # All of the VAE, as a draw's prior is the decoder's state.
        Graph("encoder", _Function(vae, posterior), image, "image", ("mean", "log_variance")),
    ]
    if (kernel := package.kernel_network) is not None:
        graphs.append(Graph("kernel_network", kernel, latent, "latent", ("kernel",)))
    if (law := package.residual) is not None:
        deviation = _Function(law, law.deviation)
        graphs.append(Graph("residual", deviation, image, "image", ("standard_deviation",)))
    if (prior := package.prior) is not None:
        graphs.append(Graph("prior", prior, (prior.noise_size,), "noise", ("latent",)))
    return graphs


def write_graph(graph: Graph, path: Path) -> None:
    """The network with a dynamic batch: a torch.export archive, or ONNX with its weights inside."""
    with _quiet():
        program = torch.export.export(
            graph.network,
            (graph.example(TRACED),),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        for module in program.graph_module.modules():
            if isinstance(module, torch.fx.GraphModule):
                for node in list(module.graph.nodes):
                    node.meta.pop("stack_trace", None)  # paths of this machine
                    if node.target in TIED:
                        module.graph.erase_node(node)
                module.recompile()
        if path.suffix == ".pt2":
            torch.export.save(program, path)
            return
        names: dict[str, Any] = {"input_names": [graph.input], "output_names": list(graph.outputs)}
        torch.onnx.export(
            program, (), path, **names, dynamo=True, external_data=False, verbose=False
        )


@torch.no_grad()
def prove(graphs: list[Graph], folder: Path) -> dict[str, float]:
    """Compare every graph in `folder` with its network, in a fresh process without this project.

    At batches of 1 and 5. Returns the largest error of each file, as a share of the output's
    largest value. Raises InputError if one is beyond TOLERANCE, or can't be run.
    """
    with tempfile.TemporaryDirectory() as place:
        for graph in graphs:
            for batch in BATCHES:
                tensors = {"input": graph.example(batch)}
                outputs = graph.network(tensors["input"])
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                tensors |= {f"output{i}": value.contiguous() for i, value in enumerate(outputs)}
                path = Path(place) / f"{graph.name}-{batch}{SUFFIX}"
                safetensors.torch.save_file(tensors, path)
        # Isolated (-I), so that neither PYTHONPATH nor this folder leads to the project.
        words = ["-I", standalone.__file__, folder.resolve(), place, torch.get_num_threads()]
        done = subprocess.run(
            [sys.executable, *map(str, words)], cwd=place, capture_output=True, text=True
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise InputError(
            f"the exported graphs can't be run by torch alone ({last[:200]}): {OTHER_TORCH}"
        )
    errors: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    for name, error in errors.items():
        if not error <= TOLERANCE:
            raise InputError(
                f"{name}: the exported graph differs from its network by {error:.3g} of the "
                f"output's largest value, more than {TOLERANCE:g}: {OTHER_TORCH}"
            )
    return errors


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the exporters' own messages."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
