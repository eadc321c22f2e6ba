"""What steers a training between its steps: the rate's weight, a watch, and signals to stop."""

import math
import signal
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean, median
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Steps whose median is the running level, and how many there must be.
WINDOW, FEWEST = 200, 50
# So many steps in a row far above it are no outlier.
IN_A_ROW = 20
# Far above: the rate by this factor, and at least so many nats a value of the image; the
# distortion by so many nats a value. A sound codec spends at most 1 nat a value, and from the mean
# image to a good reconstruction distortion falls by 2 to 3.
RATE_FACTOR, LEAST_RATE, DISTORTION = 20.0, 5.0, 1.0


@dataclass
class RateController:
    """Moves the weight β between distortion and rate until the rate meets a target.

    Once an epoch, on the epoch's mean KL: β ← β · (KL/target)^gain · (KL/KL before)^damping. A
    model needs some epochs to follow β; the second factor sees it coming, and without it the rate
    swings about the target. Without a target β stays as it is: 1 is the ELBO. Terms are then
    compared at equal nats.
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
        return self.target is None or abs(self.held / self.target - 1) <= self.tolerance

    @property
    def held(self) -> float:
        """Mean KL of the last tenth of epochs in which β was moved, nats; nan before any."""
        return fmean(self.rates[-max(1, len(self.rates) // 10) :] or [math.nan])

    def miss(self, epochs: int, warmup_steps: int) -> str:
        """How far the rate of a run of so many epochs ended from its target, and the way out."""
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


class Diverged(Exception):
    """Rate or distortion far above their running level."""


class Watch:
    """Rate and distortion of every step beside their own running level."""

    def __init__(self, values: int) -> None:
        """values: numbers an image has, C·H·W."""
        self._values = values
        self._warm_up = True
        self._rates: deque[float] = deque(maxlen=WINDOW)
        self._distortions: deque[float] = deque(maxlen=WINDOW)
        self.far = 0
        """Steps in a row that were far above the level."""

    def step(self, rate: float, distortion: float, warm_up: bool) -> None:
        """Take a step's means in nats. Raises Diverged after 20 steps far above the level.

        After the warm-up distortion is of another term, and the level begins anew.
        """
        if warm_up != self._warm_up:
            self._rates.clear()
            self._distortions.clear()
            self._warm_up = warm_up
        if len(self._rates) >= FEWEST:
            usual, error = median(self._rates), median(self._distortions)
            runs_off = rate > max(RATE_FACTOR * usual, LEAST_RATE * self._values)
            if runs_off or distortion > error + DISTORTION * self._values:
                self.far += 1
                if self.far < IN_A_ROW:
                    return
                self.far = 0
                raise Diverged(
                    f"rate {rate:.3g} nats, distortion {distortion:.3g}, where {usual:.3g} and "
                    f"{error:.3g} were usual"
                )
        self.far = 0
        self._rates.append(rate)
        self._distortions.append(distortion)


class StopSignals:
    """A block that records Ctrl-C or a scheduler's SIGTERM in `received`; not a second one.

    The loop can then end its step and save. Only a program's main thread gets signals: nothing is
    caught in another.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in SIGNALS:
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)
