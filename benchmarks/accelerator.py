"""What one accelerator does with this project, in one command.

    python benchmarks/accelerator.py --minutes 8                   # a GPU, if there is one
    python benchmarks/accelerator.py --minutes 3 --device cpu --store work/stores/hcp128

Five parts. `agreement`: gradients of both steps against a CPU in float64; FFTs in float32 outside
autocast. `speed`: images/s and memory at 64², 128² and 256² in float32 and bf16, as a CUDA graph,
channels_last or not, with torch.compile. `terms`: share of the step that the blur term takes.
`repeat`: whether two runs end with the same bits. `training`, half of the time: 128² slices, scores
of validation subjects over seconds, beside MONAI's AutoencoderKL where MONAI is installed. Writes
OUT/accelerator.md, OUT/accelerator.json and OUT/accelerator.png, and after each part what is there.

Without --store the simulated cohort is prepared at 128². With one, torch and a few small packages
are enough: numpy, safetensors, PyYAML, jsonargparse, rich, jaxtyping, lazy-loader; matplotlib draws
the figure.
"""

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

# Before CUDA starts: deterministic matrix products ask for it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from accelerator_report import markdown
from agreement import measure_agreement, measure_repeat
from measure import machine
from peers import MONAI_CHANNELS, MONAI_FULL_CHANNELS, MonaiAutoencoderKL
from quality import Scorer, train_peer, train_project, training_slices
from speed import (
    CONFIGS,
    SIZES,
    VARIANTS,
    Variant,
    WholeStep,
    all_levels_open,
    measure_speed,
)
from terms import CASES, measure_terms, resized

from data_prep.store import Store, StoreError
from pipeline.config import Config, load_config
from pipeline.distributed import Processes
from pipeline.errors import InputError, Stopped

PARTS = ("agreement", "speed", "terms", "repeat", "training")
SIDE = 128


def prepared_cohort(work: Path) -> Path:
    """The simulated cohort at 128², prepared unless it is there. Returns the store's folder."""
    name = f"demo{SIDE}"
    command = [
        sys.executable, "-m", "data_prep", f"--config={CONFIGS / 'demo.yaml'}",
        f"--prepare.name={name}", f"--prepare.size={SIDE}", "--prepare.spacing_mm=1.6",
        "--prepare.track=false",
    ]  # fmt: skip
    if subprocess.run(command, env={**os.environ, "WORK": str(work)}, check=False).returncode:
        raise InputError("the simulated cohort can't be prepared here: give a store with --store")
    return work / "stores" / name


def driver() -> str | None:
    """The GPU driver's version as nvidia-smi tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.splitlines()[0].strip() or None


class Accelerator:
    """The parts, each a method that puts what it found into `results`."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raises InputError for what would else go wrong after minutes."""
        self.began = time.monotonic()
        if options.minutes <= 0:
            raise InputError(f"--minutes must be positive, not {options.minutes:g}")
        self.options = options
        self.processes = Processes(options.device)
        self.device = self.processes.device
        folder = options.store or prepared_cohort(options.work)
        try:
            self.store = Store.open(folder)
        except StoreError as error:
            raise InputError(str(error)) from error
        config = load_config(options.config)
        training = replace(config.training, device=options.device, seed=options.seed)
        self.config = replace(config, training=training)
        self.slices = training_slices(self.store, 256)
        self.scorer = Scorer(self.store, self.device, perceptual=False)
        self.results: dict[str, Any] = self.header()

    def header(self) -> dict[str, Any]:
        store, options = self.store, self.options
        memory = None
        if self.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self.device).total_memory / 2**30
        return {
            "machine": machine(self.device)
            | {"driver": driver(), "cuda": torch.version.cuda, "gpu_gib": memory},
            "store": {
                "name": store.name,
                "digest": store.digest,
                "simulated": store.simulated,
                "side": store.image_shape[-1],
                "training_slices": sum(len(e.slice_indices) for e in store.subjects("train")),
                "validation_subjects": len(store.subjects("validation")),
            },
            "seed": options.seed,
            "config": Path(options.config).name,
            "minutes": options.minutes,
            "command": options.command,
        }

    @property
    def half(self) -> float:
        """Seconds of the half that is not for training."""
        return 30 * self.options.minutes

    def agreement(self) -> None:
        config = all_levels_open(self.options.config)
        self.results["agreement"] = measure_agreement(
            config, self.slices, self.device, self.options.seed, batch=self.options.batch
        )

    def repeat(self) -> None:
        self.results["repeat"] = measure_repeat(
            self.config, self.slices, self.processes, self.options.seed, steps=self.options.steps
        )

    def speed(self) -> None:
        on_gpu = self.device.type == "cuda"
        variants = [
            variant
            for variant in VARIANTS
            if variant.name in self.options.variants
            and (on_gpu or not (variant.compile or variant.graph))
        ]
        for rows in measure_speed(
            self.slices,
            self.processes,
            self.options.seed,
            sizes=[size for size in SIZES if size.side in self.options.sides],
            variants=variants,
            rounds=self.options.rounds,
            deadline=self.began + self.half,
        ):
            self.results["speed"] = rows
            self.write()

    def terms(self) -> None:
        cases = [
            replace(case, rounds=min(case.rounds, self.options.rounds))
            for case in CASES
            if case.side in self.options.sides
        ]
        self.results["terms"] = measure_terms(self.slices, self.processes, self.options.seed, cases)

    def training(self) -> None:
        shape = self.store.image_shape
        channels = MONAI_FULL_CHANNELS if self.device.type == "cuda" else MONAI_CHANNELS
        peers: list[Callable[[], Any]] = []
        if all(importlib.util.find_spec(name) for name in ("monai", "einops")):
            peers.append(lambda: MonaiAutoencoderKL(shape, self.device, channels))
        seconds = self.half / (1 + len(peers))
        training = replace(self.config.training, precision=self.options.precision)
        config = replace(self.config, training=training)
        self._warm_up(config, peers)
        with tempfile.TemporaryDirectory() as folder:
            runs = [train_project(config, self.store, self.scorer, seconds, Path(folder))]
        runs += [train_peer(peer, config, self.store, self.scorer, seconds) for peer in peers]
        self.results["training"] = {
            "seconds": seconds,
            "precision": self.options.precision,
            "runs": [asdict(run) for run in runs],
        }

    def _warm_up(self, config: Config, peers: Sequence[Callable[[], Any]]) -> None:
        """A step of each model that does not count: libraries load and choose their kernels."""
        side = self.store.image_shape[-1]
        images = resized(self.slices, side, config.training.batch_size).to(self.device)
        variant = Variant("", self.options.precision, graph=config.training.cuda_graph)
        WholeStep(config, variant, images, self.processes, self.options.seed)()
        for peer in peers:
            peer().step(images)

    def run(self) -> dict[str, Any]:
        for part in PARTS:
            if part in self.options.only:
                getattr(self, part)()
                self.write()
        return self.results

    def write(self) -> None:
        """accelerator.json and .md, and the curves where matplotlib is installed."""
        folder = self.options.out
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "accelerator.json").write_text(json.dumps(self.results, indent=1) + "\n")
        (folder / "accelerator.md").write_text(markdown(self.results))
        if "training" in self.results and importlib.util.find_spec("matplotlib"):
            from report import figure

            figure(self.results["training"]).savefig(folder / "accelerator.png", dpi=110)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    work = Path(os.environ.get("WORK") or "work")
    sides = [size.side for size in SIZES]
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--minutes", type=float, default=8.0, help="for all, about")
    parser.add_argument("--store", type=Path, help="folder of a prepared store of 128²")
    parser.add_argument("--config", type=Path, default=CONFIGS / "hcp128.yaml")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32",
                        help="of the training")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--sides", nargs="+", type=int, choices=sides, default=sides,
                        help="of `speed` and `terms`")  # fmt: skip
    parser.add_argument("--variants", nargs="+", choices=names, default=names,
                        help="of `speed`")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each variant")
    parser.add_argument("--steps", type=int, default=10, help="of each run in `repeat`")
    parser.add_argument("--batch", type=int, default=8, help="images in `agreement`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=work / "benchmarks")
    options = parser.parse_args(argv)
    options.work = work
    options.command = shlex.join(["python", "benchmarks/accelerator.py", *argv])
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 gradients differ, 2 bad input, 128 + N after signal N."""
    options = arguments(sys.argv[1:] if argv is None else argv)
    try:
        results = Accelerator(options).run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(error, file=sys.stderr)
        return 128 + error.number
    except KeyboardInterrupt:
        return 130
    print(f"\n{markdown(results)}\nwritten to {options.out}")
    return 0 if results.get("agreement", {}).get("agrees", True) else 1


if __name__ == "__main__":
    sys.exit(main())
