"""Memory that a training step needs, counted on a CPU: for a GPU that one has not got yet.

    python benchmarks/memory.py                                    # the shipped configurations
    python benchmarks/memory.py --configs configs/hcp.yaml --batch 32

Counted are the tensors that autograd keeps for the backward pass (each storage once, at batches of
1 and 2, extended to the batch that is asked for: all of them grow with it or not at all), weights,
gradients, averaged weights and the optimisers' two moments. Workspace of the convolutions and the
gradients of activations come on top.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from speed import CONFIGS, all_levels_open

from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.training.objective import Objective, build_objective

GIB = 2**30
SHIPPED = (("hcp64.yaml", 256), ("hcp128.yaml", 128), ("hcp.yaml", 32))
# Weights, gradients, averaged weights, two moments of Adam.
COPIES = 5


def kept(objective: Objective, batch: int, side: int, channels: int, latent: int) -> int:
    """Bytes that autograd keeps of a step's forward pass, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    storages: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    images, noise = torch.rand(batch, channels, side, side), torch.randn(batch, latent)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss, _ = objective(images, noise, beta=1.0, warm_up=False)
    del loss  # until here every storage is alive, and no address is used twice
    return sum(storages.values())


def step_memory(config: Config, batch: int) -> tuple[float, float]:
    """GiB of activations, and of weights with all that belongs to them, at float32."""
    side, channels = config.prepare.size, 1
    objective = build_objective(config, (channels, side, side)).to(
        memory_format=torch.channels_last
    )
    one, two = (kept(objective, n, side, channels, config.model.latent_size) for n in (1, 2))
    weights = sum(4 * p.numel() for p in objective.parameters())
    return (one + (batch - 1) * (two - one)) / GIB, COPIES * weights / GIB


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a Markdown table. Returns the exit code."""
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", type=Path, nargs="+", default=[])
    parser.add_argument("--batch", type=int, default=32, help="of the --configs given")
    options = parser.parse_args(argv)
    if options.batch < 1:
        print(f"error: --batch must be at least 1, not {options.batch}", file=sys.stderr)
        return 2
    given = [(path, options.batch) for path in options.configs]
    print("| configuration | batch | activations, GiB | weights, gradients, moments, GiB | sum |")
    print("|---|---|---|---|---|")
    for path, batch in given or [(CONFIGS / name, batch) for name, batch in SHIPPED]:
        try:
            activations, weights = step_memory(all_levels_open(path), batch)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(
            f"| {path.name} | {batch} | {activations:.2f} | {weights:.2f} | "
            f"{activations + weights:.2f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
