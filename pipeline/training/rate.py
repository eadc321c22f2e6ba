"""Holding the rate, so that terms are compared at equal nats."""

from dataclasses import dataclass


@dataclass
class RateController:
    """Moves the weight β between distortion and rate until the rate meets a target.

    Once an epoch, multiplicatively on the epoch's mean KL: β ← β · (KL/target)^gain. Without a
    target β stays as it is: 1 is the ELBO.
    """

    beta: float = 1.0
    target: float | None = None
    gain: float = 1.5
    largest_step: float = 2.0
    smallest: float = 1e-6
    largest: float = 1e6
    tolerance: float = 0.03

    def update(self, mean_rate: float) -> float:
        """Take an epoch's mean KL in nats; returns the β of the next epoch."""
        if self.target is not None and mean_rate > 0:
            factor = (mean_rate / self.target) ** self.gain
            factor = min(max(factor, 1 / self.largest_step), self.largest_step)
            self.beta = min(max(self.beta * factor, self.smallest), self.largest)
        return self.beta

    def settled(self, mean_rate: float) -> bool:
        """Whether a rate is within the tolerance (3%) of the target; always, without one."""
        return self.target is None or abs(mean_rate / self.target - 1) <= self.tolerance
