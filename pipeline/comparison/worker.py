"""One run of a comparison: python -m pipeline.comparison.worker CONFIG RUN [--restart].

Trained and scored in one process, as imports take longer than scoring a small run. It stops, its
state saved, soon after its standard input has ended: no run outlives its comparison.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from data_prep.common.console import steady_output
from data_prep.common.tracking import quieten_mlflow
from pipeline.config import load_config
from pipeline.errors import InputError, Stopped
from pipeline.files import locked

# A scheduler's signal to all of a job's processes has come here as well, and a second one would
# not let the state be saved.
GRACE_SECONDS = 3.0


def main(path: str, run: str, restart: bool) -> int:
    """Returns the exit code: 0 done, 2 bad input, 128 + N for signal N."""
    steady_output()
    quieten_mlflow()
    threading.Thread(target=_follow, daemon=True).start()
    from pipeline.evaluation.evaluate import evaluate_run
    from pipeline.training.train import train_run

    try:
        # The worker of a comparison that was killed a moment ago may still be saving its state.
        with locked(Path(f"{path}.lock")):
            train_run(load_config(path), run, restart)
            evaluate_run(load_config(path), run)
    except (InputError, OSError) as error:
        print(f"error: {error}")
        return 2
    except Stopped as error:
        print(f"{error}, state saved")
        return 128 + error.number
    return 0


def _follow() -> None:
    sys.stdin.read()
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], "--restart" in sys.argv[3:]))
