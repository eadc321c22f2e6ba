"""Training that runs away: caught while it happens, not at the end."""

from collections import deque
from statistics import median

# Steps whose median is the running level, and how many there must be.
WINDOW, FEWEST = 200, 50
# So many steps in a row far above it are no outlier.
IN_A_ROW = 20
# Far above: the rate by this factor, and at least so many nats a value of the image; the
# distortion by so many nats a value. A sound codec spends at most 1 nat a value, and from the mean
# image to a good reconstruction distortion falls by 2 to 3.
RATE_FACTOR, LEAST_RATE, DISTORTION = 20.0, 5.0, 1.0


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
                if self.far >= IN_A_ROW:
                    self.far = 0
                    raise Diverged(
                        f"rate {rate:.3g} nats, distortion {distortion:.3g}, where {usual:.3g} and "
                        f"{error:.3g} were usual"
                    )
                return
        self.far = 0
        self._rates.append(rate)
        self._distortions.append(distortion)
