"""Holding the rate, so that terms are compared at equal nats."""

import math
from dataclasses import dataclass, field
from statistics import fmean


@dataclass
class RateController:
    """Moves the weight β between distortion and rate until the rate meets a target.

    Once an epoch, on the epoch's mean KL: β ← β · (KL/target)^gain · (KL/KL before)^damping. A
    model needs some epochs to follow β; the second factor sees it coming, and without it the rate
    swings about the target. Without a target β stays as it is: 1 is the ELBO.
    """

    beta: float = 1.0
    target: float | None = None
    gain: float = 0.7
    damping: float = 0.4
    largest_step: float = 2.0
    smallest: float = 1e-6
    largest: float = 1e6
    tolerance: float = 0.03
    rates: list[float] = field(default_factory=list)
    """Mean KL of every epoch so far, nats."""

    def update(self, mean_rate: float) -> float:
        """Take an epoch's mean KL in nats; returns the β of the next epoch."""
        before = self.rates[-1] if self.rates and self.rates[-1] > 0 else mean_rate
        self.rates.append(mean_rate)
        if self.target is not None and mean_rate > 0:
            factor = (mean_rate / self.target) ** self.gain * (mean_rate / before) ** self.damping
            self.reweight(min(max(factor, 1 / self.largest_step), self.largest_step))
        return self.beta

    def reweight(self, factor: float) -> None:
        """Multiply β, where there is a target: the distortion's unit has changed by as much."""
        if self.target is not None and math.isfinite(factor) and factor > 0:
            self.beta = min(max(self.beta * factor, self.smallest), self.largest)

    @property
    def settled(self) -> bool:
        """Whether the rate of the last tenth of epochs is within 3% of the target, if there is one.

        Of one epoch before there are ten; not settled before there is any.
        """
        if self.target is None:
            return True
        return bool(self.rates) and abs(self.held / self.target - 1) <= self.tolerance

    @property
    def held(self) -> float:
        """Mean KL of the last tenth of epochs in which β was moved, nats; nan before any."""
        return fmean(self.rates[-max(1, len(self.rates) // 10) :] or [math.nan])

    def miss(self, epochs: int, warmup_steps: int) -> str:
        """In words, how far the rate of a run of so many epochs ended from its target."""
        if not self.rates:
            return (
                f"β was never moved towards training.rate_target {self.target:g}: the training "
                "ended before every level was open and the weight of the rate had grown: train "
                f"longer, or lower training.rate_warmup_steps ({warmup_steps})"
            )
        return (
            f"the last epochs hold {self.held:.0f} nats, not training.rate_target {self.target:g}; "
            f"β was moved after {len(self.rates)} of {epochs} epochs: train longer, lower "
            f"training.rate_warmup_steps ({warmup_steps}), or choose another target"
        )
