"""Networks as graphs that need nothing of this project: torch.export and ONNX, and their check."""

import contextlib
import importlib.util
import io
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.decoder_package import standalone
from pipeline.errors import InputError

# 1 and 5: neither is the batch that the graph was traced with.
BATCHES = (1, 5)
TRACED = 2
# What the tracer leaves of `at_least_single`: it has no effect, but ties the graph to the CPU.
TIED = (torch.ops.aten._assert_tensor_metadata.default, torch.ops.aten.promote_types.default)
# Largest error of a graph against its network, as a share of the output's largest value. Both are
# float32, and in two processes the same sum may be taken in another order.
TOLERANCE = 1e-5


OTHER_TORCH = "nothing was written; try with the versions of torch and onnx in constraints.txt"


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


def write_pt2(graph: Graph, path: Path) -> None:
    """The network as a torch.export archive with a dynamic batch: torch alone loads it."""
    with _quiet():
        program = _program(graph)
        torch.export.save(program, path)


def write_onnx(graph: Graph, path: Path) -> None:
    """The network as ONNX with a dynamic batch, weights inside the file."""
    with _quiet():
        torch.onnx.export(
            _program(graph),
            (),
            path,
            input_names=[graph.input],
            output_names=list(graph.outputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def require_onnx() -> None:
    """Raise InputError if the extra `onnx` is not installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime")
               if importlib.util.find_spec(name) is None]  # fmt: skip
    if missing:
        raise InputError(
            f"--onnx needs {', '.join(missing)}: install the extra (pip install "
            "'sharp-vae-mri[onnx]'), or omit --onnx"
        )


@torch.no_grad()
def prove(graphs: list[Graph], folder: Path) -> dict[str, float]:
    """Compare every graph in `folder` with its network, in a fresh process without this project.

    At batches of 1 and 5. Returns the largest error of each file, as a share of the output's
    largest value. Raises InputError if one is beyond TOLERANCE, or can't be run.
    """
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        for graph in graphs:
            for batch in BATCHES:
                given = graph.example(batch)
                found = graph.network(given)
                outputs = found if isinstance(found, tuple) else (found,)
                named = {f"output{i}": value.contiguous() for i, value in enumerate(outputs)}
                path = work / f"{graph.name}-{batch}.safetensors"
                safetensors.torch.save_file({"input": given, **named}, path)
        (work / "empty").mkdir()
        # Isolated (-I), so that neither PYTHONPATH nor this folder leads to the project.
        command = [sys.executable, "-I", standalone.__file__, folder.resolve(), work.resolve(),
                   torch.get_num_threads()]  # fmt: skip
        done = subprocess.run(
            [str(word) for word in command], cwd=work / "empty", capture_output=True, text=True
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(
            f"the exported graphs can't be run by torch alone ({lines[-1][:200]}): {OTHER_TORCH}"
        )
    largest: dict[str, float] = {}
    for name, error in json.loads(done.stdout.splitlines()[-1]).items():
        if not error <= TOLERANCE:
            raise InputError(
                f"{name}: the exported graph differs from its network by {error:.3g} of the "
                f"output's largest value, more than {TOLERANCE:g}: {OTHER_TORCH}"
            )
        file = name.rpartition("-")[0]
        largest[file] = max(largest.get(file, 0.0), error)
    return largest


def _program(graph: Graph) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        graph.network, (graph.example(TRACED),), dynamic_shapes=({0: batch},)
    )
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in list(module.graph.nodes):
                node.meta.pop("stack_trace", None)  # paths of this machine
                if node.target in TIED:
                    module.graph.erase_node(node)
            module.recompile()
    return program


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
