"""Run as a script: prepare a store, kill it at random moments, and let the same command go on.

    python killing.py CONFIG.yaml WORK KILLS SEED

Each attempt is a fork of this process, which has done the imports, so that the kills fall on
the work and not on them. Attempts take turns with three configurations: shards are made, kept,
made anew and removed. Prints how many attempts were killed in the middle.
"""

import os
import random
import signal
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import data_prep.preparation as stage
from data_prep.__main__ import main

# So often that kills also fall on the writing of what is done so far.
stage.SECONDS_BETWEEN_PARTIALS = 0.02

PHASES = ([], ["--prepare.plane=coronal"], ["--prepare.split.salt=b", "--prepare.max_slices=4"])


def attempt(arguments: list[str], seconds: float | None) -> bool:
    """Run the command in a fork; kill it after `seconds`. Whether it was killed."""
    child = os.fork()
    if not child:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os._exit(main(arguments))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


if __name__ == "__main__":
    config, work, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    os.environ["WORK"] = str(work)
    draw = random.Random(seed)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        main(["--config", config, "--prepare.name=imports"])  # all of them, here
    began = time.monotonic()
    attempt(["--config", config, "--prepare.name=timing"], None)
    whole = time.monotonic() - began
    killed = tries = 0
    while killed < kills and tries < 20 * kills:
        tries += 1
        phase = PHASES[draw.randrange(3)]
        killed += attempt(["--config", config, *phase], draw.uniform(0, whole))
    attempt(["--config", config], None)
    print(killed)
