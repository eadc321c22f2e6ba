"""A program of its own: runs a package's graphs where this project can't be imported.

python -I standalone.py PACKAGE EXAMPLES THREADS; EXAMPLES holds NAME-BATCH.safetensors with `input`
and `output0`, … of the network. Prints the largest error of each graph over its examples as JSON,
as a share of the output's largest value.
"""

import json
import sys
from pathlib import Path
from typing import Any


class Blocker:
    """An import hook that hides this project, however it is installed."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in ("pipeline", "data_prep"):
            raise ModuleNotFoundError(f"a package must not need {name}")


def largest_error(output: Any, expected: Any) -> float:
    """max|output − expected| / max|expected|; infinite where a value of either is not finite."""
    import numpy as np

    if not (np.isfinite(output).all() and np.isfinite(expected).all()):
        return float("inf")  # max(0, nan) is 0, which would pass as exact
    largest = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    return float(np.abs(output - expected).max()) / largest


def main(package: Path, examples: Path, threads: int) -> None:
    sys.meta_path.insert(0, Blocker())
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(threads)

    def runner(path: Path) -> Any:
        if path.suffix == ".pt2":
            return torch.export.load(path).module()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda given: tuple(map(torch.from_numpy, session.run(None, {name: given.numpy()})))

    errors: dict[str, float] = {}
    for graph in sorted([*package.glob("*.pt2"), *package.glob("*.onnx")]):
        run = runner(graph)
        for example in sorted(examples.glob(f"{graph.stem}-*.safetensors")):
            tensors = load_file(example)
            with torch.no_grad():
                outputs = run(tensors["input"])
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            assert len(outputs) == len(tensors) - 1, f"{graph.name} has {len(outputs)} outputs"
            for index, output in enumerate(outputs):
                expected = tensors[f"output{index}"].numpy()
                assert output.numpy().shape == expected.shape, f"{graph.name}: {output.shape}"
                error = largest_error(output.numpy(), expected)
                errors[graph.name] = max(errors.get(graph.name, 0.0), error)
    print(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
