"""Training against VAEs of other projects, and the blur term against the plain Gaussian term.

    python benchmarks/training.py --store work/stores/hcp64 --config configs/hcp64.yaml
    python benchmarks/training.py --store … --only terms throughput
    python benchmarks/training.py --store … --device cuda

Four parts: `terms` (price of the blur term in whole training steps), `quality` (validation scores
over wall-clock seconds, --minutes for each of five models, and this project's once more, its whole
schedule in 75 seconds), `throughput` (images/s and multiply-adds of the same models), `reading`
(how fast batches come from the store). Writes OUT/training.md, OUT/training.json and
OUT/time_to_quality.png. Everything compared is measured side by side, so that ratios hold on
another machine, too; run nothing else on it meanwhile.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from measure import machine
from peers import (
    MONAI_CHANNELS,
    MONAI_FULL_CHANNELS,
    PROJECT,
    PROJECT_SHORT,
    SHORT_SECONDS,
    Project,
    PythaeVAE,
    peers,
)
from quality import METRICS, Run, Scorer, best, compare, train_peer, train_project, training_slices
from report import figure, markdown
from terms import CASES, measure_terms
from throughput import LARGE_BATCH, measure_reading, measure_throughput

from data_prep.store import Store, StoreError
from pipeline.config import load_config
from pipeline.distributed import Processes
from pipeline.errors import InputError, Stopped
from pipeline.training.objective import build_objective

PARTS = ("terms", "quality", "throughput", "reading")


def judged(runs: Sequence[Run], seconds: float) -> dict[str, Any]:
    """The part `quality` of training.json: curves, their best points, which model was first."""
    bests = {
        run.name: {
            metric: asdict(point) if (point := best(run.curve, metric)) else None
            for metric in METRICS
        }
        for run in runs
    }
    return {
        "seconds": seconds,
        "runs": [asdict(run) for run in runs],
        "best": bests,
        "comparison": compare(runs, seconds),
    }


def open_store(path: Path) -> Store:
    """Raises InputError where there is no store."""
    try:
        return Store.open(path)
    except StoreError as error:
        raise InputError(str(error)) from error


class Benchmark:
    """The parts, each a method that returns what goes into training.json."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raises InputError for everything that would else go wrong after minutes."""
        if options.minutes <= 0:
            raise InputError(f"--minutes must be positive, not {options.minutes:g}")
        if options.threads > 0:
            torch.set_num_threads(options.threads)
        self.options = options
        self.processes = Processes(options.device)
        self.device = self.processes.device
        self.store = open_store(options.store)
        config = load_config(options.config)
        try:
            training = replace(
                config.training, device=options.device, threads=options.threads, seed=options.seed
            )
        except ValueError as error:
            raise InputError(str(error)) from error
        self.config = replace(config, training=training)
        self.shape = self.store.image_shape
        build_objective(self.config, self.shape)
        self.slices = training_slices(self.store, 2 * LARGE_BATCH)
        full = self.device.type == "cuda" if options.full_size is None else options.full_size
        channels = options.monai_channels or (MONAI_FULL_CHANNELS if full else MONAI_CHANNELS)
        compared = {"quality", "throughput"} & set(options.only)
        self.peers = peers(self.shape, self.device, channels) if compared else {}
        self.scorer = Scorer(self.store, self.device) if "quality" in options.only else None

    def header(self) -> dict[str, Any]:
        store, options = self.store, self.options
        return {
            "machine": machine(self.device),
            "store": {
                "name": store.name,
                "digest": store.digest,
                "simulated": store.simulated,
                "training_slices": sum(len(e.slice_indices) for e in store.subjects("train")),
                "validation_people": len(store.subjects("validation")),
            },
            "seed": options.seed,
            "config": str(options.config),
            "command": options.command,
        }

    def terms(self) -> list[dict[str, Any]]:
        cases = [case for case in CASES if case.side in self.options.sides]
        return measure_terms(self.slices, self.processes, self.options.seed, cases)

    def quality(self) -> dict[str, Any]:
        assert self.scorer is not None
        seconds = 60 * self.options.minutes
        runs = []
        for name, time in ((PROJECT, seconds), (PROJECT_SHORT, min(SHORT_SECONDS, seconds))):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(
                    train_project(self.config, self.store, self.scorer, time, Path(folder), name)
                )
        for build in self.peers.values():
            runs.append(train_peer(build, self.config, self.store, self.scorer, seconds))
        return judged(runs, seconds) | {
            "left_out": []
            if PythaeVAE.name in self.peers
            else [f"{PythaeVAE.name} is left out: its networks take images of 64×64 only."],
        }

    def throughput(self) -> list[dict[str, Any]]:
        torch.manual_seed(self.options.seed)
        models = {PROJECT: lambda: Project(self.shape, self.processes, self.config), **self.peers}
        sizes = sorted({self.config.training.batch_size, LARGE_BATCH})
        return measure_throughput(models, self.slices, sizes, self.device)

    def reading(self) -> dict[str, Any]:
        return measure_reading(self.config, self.store, self.processes)

    def run(self) -> dict[str, Any]:
        """Every wanted part; what is there so far is written after each."""
        results = self.header()
        for part in PARTS:
            if part in self.options.only:
                results[part] = getattr(self, part)()
                write(self.options.out, results)
                if part == "quality":
                    picture = self.options.out / "time_to_quality.png"
                    figure(results[part]).savefig(picture, dpi=110)
        return results


def write(folder: Path, results: dict[str, Any]) -> None:
    """training.json and training.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "training.md").write_text(markdown(results))


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    work = Path(os.environ.get("WORK") or "work")
    parser.add_argument("--store", type=Path, required=True, help="folder of a prepared store")
    parser.add_argument("--config", type=Path, default=Path("configs/hcp64.yaml"))
    parser.add_argument("--minutes", type=float, default=5.0, help="for each model in `quality`")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--sides", nargs="+", type=int, choices=[case.side for case in CASES],
                        default=[case.side for case in CASES], help="of `terms`")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=work / "benchmarks")
    parser.add_argument("--full-size", action=argparse.BooleanOptionalAction, default=None,
                        help="MONAI's channels as in its tutorial; default on a GPU")  # fmt: skip
    parser.add_argument("--monai-channels", type=int, nargs="+", metavar="N",
                        help="other channels for MONAI's AutoencoderKL")  # fmt: skip
    options = parser.parse_args(argv)
    options.command = shlex.join(["python", "benchmarks/training.py", *argv])
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad input, 128 + N stopped by signal N."""
    options = arguments(sys.argv[1:] if argv is None else argv)
    try:
        results = Benchmark(options).run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(error, file=sys.stderr)
        return 128 + error.number
    except KeyboardInterrupt:
        return 130
    print(f"\n{markdown(results)}\nwritten to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
