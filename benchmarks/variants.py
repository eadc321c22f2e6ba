"""Variants of a configuration on unseen subjects, at one rate.

    python benchmarks/variants.py --config configs/hcp64.yaml --root /data/HCP_1200 \
        --split validation --seeds 0 --variant levels \
        --variant vector 'model.levels=[{side: 1, channels: 256}]'

Prepares the store, trains every variant with every seed for the same number of epochs at the same
rate in nats, scores the last checkpoint, and writes a table: mean over seeds ± standard deviation
between seeds, and beside it the ratio to the first variant and in how many seeds it is better.
Runs that are finished are not repeated. `--jobs 2` trains two at once with one thread each. Any
configuration key can be overridden behind these options (`--training.epochs=20`). To compare
reconstruction terms there is `python -m pipeline compare`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

# Metric, and which way is better; none for what only describes.
METRICS = {
    "psnr": "up",
    "ssim": "up",
    "lpips_alex": "down",
    "lpips_vgg": "down",
    "blur_effect": "down",
    "high_frequency_ratio": "up",
    "gradient_magnitude_ratio": "up",
    "spectrum_error": "down",
    "kid_vgg16": "down",
    "fd_vgg16": "down",
    "rate": "",
    "elbo_bits_per_dim": "down",
    "sample_blur_effect": "",
    "sample_high_frequency_ratio": "",
    "sample_spectrum_error": "down",
    "sample_kid_vgg16": "down",
    "sample_fd_vgg16": "down",
    "sample_kid_coarse": "down",
    "sample_novelty": "",
}
Scores = dict[str, float]


def work_folder() -> Path:
    return Path(os.environ.get("WORK") or "work")


def call(module: str, *arguments: str) -> None:
    """Run a stage in a process of its own; its output is shown when it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", *module.split(), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def train_and_score(variant: list[str], seed: int, options: argparse.Namespace) -> Scores:
    """One run; returns the mean over subjects of every metric."""
    name, *keys = variant
    run = f"{options.prefix}-{name}-{seed}"
    overrides = [*options.overrides, *(f"--{key}" for key in keys)]
    if options.rate > 0:
        overrides.append(f"--training.rate_target={options.rate}")
    call(
        "pipeline train",
        f"--config={options.config}",
        f"--run={run}",
        f"--training.seed={seed}",
        "--training.threads=1",
        *overrides,
    )
    scored = ["--evaluation.checkpoint=last", f"--evaluation.split={options.split}"]
    call("pipeline evaluate", f"--run={run}", *scored)
    print(f"{run} is done", flush=True)
    metrics = json.loads((work_folder() / "runs" / run / "evaluation/metrics.json").read_text())
    return {key: interval["mean"] for key, interval in metrics.items()}


def table(results: dict[str, list[Scores]], options: argparse.Namespace) -> str:
    """Markdown: a row per metric, a column per variant."""
    seeds, names = len(options.seeds), list(results)
    rate = f"rate target {options.rate:g} nats" if options.rate > 0 else "no rate target"
    lines = [
        f"{options.split} subjects, {rate}, {seeds} seeds, {platform.machine()}, "
        f"{os.cpu_count()} cores",
        "",
        f"| metric | better | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for metric, better in METRICS.items():
        if any(metric not in row for rows in results.values() for row in rows):
            continue
        first = np.array([row[metric] for row in results[names[0]]])
        cells = []
        for name in names:
            values = np.array([row[metric] for row in results[name]])
            cell = f"{values.mean():.4g}" + (f" ± {values.std(ddof=1):.2g}" if seeds > 1 else "")
            if name != names[0]:
                cell += f" (×{values.mean() / first.mean():.3f}"
                if better:
                    wins = int(((values > first) if better == "up" else (values < first)).sum())
                    cell += f", better in {wins} of {seeds}"
                cell += ")"
            cells.append(cell)
        lines.append(f"| {metric} | {better} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prepare, train, score, and write WORK/PREFIX-SPLIT.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", default="configs/hcp64.yaml")
    parser.add_argument("--root", default="", help="folder of the volumes (prepare.root)")
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "key=value"),
        help="a name and the configuration keys that make it; may be repeated",
    )
    parser.add_argument("--rate", type=float, default=400.0, help="nats for all; 0 = no target")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test", choices=["test", "validation"])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, a thread each")
    parser.add_argument("--prefix", default="compare", help="of the runs' names")
    options, options.overrides = parser.parse_known_args()
    variants = options.variant
    root = [f"--prepare.root={options.root}"] if options.root else []
    call("data_prep", f"--config={options.config}", *root, *options.overrides)
    runs = [(variant, seed) for seed in options.seeds for variant in variants]
    with ThreadPoolExecutor(options.jobs) as pool:
        scores = list(pool.map(lambda run: train_and_score(*run, options), runs))
    results: dict[str, list[Scores]] = {variant[0]: [] for variant in variants}
    for (variant, _), row in zip(runs, scores, strict=True):
        results[variant[0]].append(row)
    text = table(results, options)
    print(text)
    (work_folder() / f"{options.prefix}-{options.split}.md").write_text(text)


if __name__ == "__main__":
    main()
