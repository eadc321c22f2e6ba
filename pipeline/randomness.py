"""Random numbers that depend on seed and position alone.

Nothing is drawn from a generator that lives on: the order of an epoch and the noise of a step are
functions of the seed and of the epoch's or step's number. A resumed run, another number of loader
workers or of processes therefore sees the same numbers.
"""

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What random numbers are for; each purpose has a stream of its own."""

    ORDER = 1
    AUGMENTATION = 2
    POSTERIOR = 3
    PRIOR = 4
    RESIDUAL = 5
    PRIOR_GROUPS = 6
    PRIOR_MIXING = 7


def generator(
    seed: int, stream: Stream, number: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator for the `number`-th epoch or step of a stream. seed, number >= 0."""
    mixed = np.random.SeedSequence((seed, int(stream), number)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed >> np.uint64(1)))
