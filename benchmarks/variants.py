"""Variants of a configuration on unseen subjects: a row each.

    python benchmarks/variants.py --config configs/hcp64.yaml --root /data/HCP_1200 \
        --split validation --seeds 0 --variant levels \
        --variant vector 'model.levels=[{side: 1, channels: 256}]'

Prepares the store unless --store names one, trains every variant with every seed for the same
number of epochs, scores the last checkpoint, and writes a table: mean over seeds ± standard
deviation between seeds. --rate holds all at one rate in nats. Runs that are finished are not
repeated; one that fails is named with the end of its output, and left out. `--jobs 2` trains two at
once with one thread each. Any configuration key can be set for all behind these options
(`--training.epochs=20`). To compare reconstruction terms there is `python -m pipeline compare`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np

from data_prep.common.files import work_folder

# Metric -> its column, with the unit and which way is better, and decimals.
COLUMNS = {
    "psnr": ("PSNR, dB ↑", 2),
    "ssim": ("SSIM ↑", 4),
    "lpips_alex": ("LPIPS alex ↓", 4),
    "lpips_vgg": ("LPIPS vgg ↓", 4),
    "high_frequency_ratio": ("high frequencies → 1", 3),
    "kid_vgg16": ("KID vgg16 ↓", 4),
    "rate": ("rate, nats", 0),
    "elbo_bits_per_dim": ("−ELBO, bits/dim ↓", 3),
    "sample_high_frequency_ratio": ("samples: high frequencies → 1", 3),
    "sample_kid_vgg16": ("samples: KID vgg16 ↓", 4),
    "sample_kid_coarse": ("samples: KID of 4×4 means ↓", 4),
}
Scores = dict[str, float]


class Failed(RuntimeError):
    """A stage ended with an error; the text is the end of what it printed."""


def call(module: str, *arguments: str) -> None:
    """Run a stage in a process of its own. Raises Failed with the end of its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", *module.split(), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def train_and_score(
    variant: Sequence[str], seed: int, options: argparse.Namespace
) -> Scores | None:
    """One run; returns the mean over subjects of every metric, None where it failed."""
    name, *keys = variant
    run = f"{options.prefix}-{name}-{seed}"
    trained = [*options.overrides, *(f"--{key}" for key in keys), f"--training.seed={seed}"]
    if options.rate > 0:
        trained.append(f"--training.rate_target={options.rate}")
    if options.store:
        trained.append(f"--data.store={options.store}")
    # What else is set for all is about the training, and would be refused here.
    scored = [key for key in options.overrides if key.startswith(("--evaluation.", "--tracking."))]
    scored += ["--evaluation.checkpoint=last", f"--evaluation.split={options.split}"]
    try:
        config = f"--config={options.config}"
        call("pipeline train", config, f"--run={run}", "--training.threads=1", *trained)
        call("pipeline evaluate", f"--run={run}", *scored)
    except Failed as error:
        print(f"{run} failed: {error}", file=sys.stderr, flush=True)
        return None
    print(f"{run} is done", flush=True)
    metrics = json.loads((work_folder() / "runs" / run / "evaluation/metrics.json").read_text())
    return {key: interval["mean"] for key, interval in metrics.items()}


def table(results: dict[str, list[Scores]]) -> str:
    """Markdown: a row per variant, a column per metric that every run has."""
    rows = [row for found in results.values() for row in found]
    columns = {key: value for key, value in COLUMNS.items() if all(key in row for row in rows)}
    lines = [
        "| variant | seeds | " + " | ".join(title for title, _ in columns.values()) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, found in results.items():
        cells = []
        for metric, (_, decimals) in columns.items():
            values = np.array([row[metric] for row in found])
            cell = f"{values.mean():,.{decimals}f}"
            if len(values) > 1:
                cell += f" ± {values.std(ddof=1):,.{decimals}f}"
            cells.append(cell.replace("-", "−"))
        lines.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", default="configs/hcp64.yaml")
    parser.add_argument("--root", default="", help="folder of the volumes (prepare.root)")
    parser.add_argument("--store", default="", help="a prepared store, by name or path")
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "key=value"),
        help="a name and the configuration keys that make it; may be repeated",
    )
    parser.add_argument("--rate", type=float, default=0.0, help="nats for all; 0 = no target")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test", choices=["test", "validation"])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, a thread each")
    parser.add_argument("--prefix", default="variants", help="of the runs' names")
    options, options.overrides = parser.parse_known_args(argv)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare, train, score, and write WORK/PREFIX-SPLIT.md. Returns 1 where a run failed."""
    options = arguments(sys.argv[1:] if argv is None else argv)
    if not options.store:
        root = [f"--prepare.root={options.root}"] if options.root else []
        try:
            call("data_prep", f"--config={options.config}", *root, *options.overrides)
        except Failed as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    written = work_folder() / f"{options.prefix}-{options.split}.md"
    held = f"{options.rate:g} nats" if options.rate > 0 else "β as configured"
    results: dict[str, list[Scores]] = {}
    failed, text = 0, ""
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = {
            pool.submit(train_and_score, variant, seed, options): variant[0]
            for seed in options.seeds
            for variant in options.variant
        }
        for run in as_completed(runs):
            scores = run.result()
            if scores is None:
                failed += 1
                continue
            results.setdefault(runs[run], []).append(scores)
            shown = {v[0]: results[v[0]] for v in options.variant if v[0] in results}
            text = f"{options.split} subjects, {held}\n\n{table(shown)}"
            written.write_text(text)  # after each run: what is there is kept if the rest is not
    print(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
