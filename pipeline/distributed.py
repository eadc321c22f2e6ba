"""One training by one process or by several: their ranks, and what they exchange.

Started by torchrun, accelerate joins the processes; started alone, everything here is the identity.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import InputError, Stopped


def choose_device(name: str, key: str = "training.device") -> torch.device:
    """auto, cpu, cuda, cuda:1 -> device; InputError, naming the key, if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"{key} {name!r} is not usable here: choose auto, cpu or cuda") from error
    return device


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, without gradient; the tensor itself where alone."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return value.detach()
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


class Processes:
    """The processes of one run. Collective methods must be called by all of them, in one order."""

    def __init__(self, device: str = "auto") -> None:
        """device: the setting training.device. Raises InputError if it is not there."""
        self.rank, self.count = 0, 1
        self._accelerator: Any = None
        launched = os.environ.get("LOCAL_RANK")  # set by torchrun
        if launched is not None and ":" in device:
            raise InputError(f"training.device {device}: under torchrun give cuda, cpu or auto")
        if launched is not None and torch.cuda.is_available():
            # Or each would have a context on the first GPU, too.
            torch.cuda.set_device(int(launched) % torch.cuda.device_count())
        self.device = choose_device(device)
        if launched is not None:
            from accelerate import Accelerator

            self._accelerator = Accelerator(cpu=self.device.type == "cpu")
            self.device = self._accelerator.device
            self.rank = self._accelerator.process_index
            self.count = self._accelerator.num_processes
        # Few shapes, over and over: the fastest convolutions are worth looking for.
        torch.backends.cudnn.benchmark = self.device.type == "cuda"

    @property
    def main(self) -> bool:
        """True for the process that writes files, reports and tracks."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"{self.device}" + (f" and {self.count - 1} more" if self.count > 1 else "")

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over processes in every backward pass."""
        return module if self._accelerator is None else self._accelerator.prepare_model(module)

    def unsynchronised(self, module: nn.Module) -> AbstractContextManager:
        """A block whose backward passes leave gradients to the last one outside it."""
        return nullcontext() if self._accelerator is None else self._accelerator.no_sync(module)

    def from_main(self, value: Any) -> Any:
        """The main process's plain value, on all of them."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def largest(self, values: list[float]) -> list[float]:
        """Element by element the largest over processes."""
        if self.count == 1:
            return values
        gathered = self._accelerator.gather(torch.tensor([values], device=self.device))
        return gathered.amax(dim=0).tolist()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After a failure the others may wait for this one: torchrun ends them.
        if self._accelerator is not None and (kind is None or issubclass(kind, Stopped)):
            self._accelerator.wait_for_everyone()  # the main one may still be writing
            self._accelerator.end_training()
