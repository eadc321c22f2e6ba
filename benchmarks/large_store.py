"""Reading from a store that is larger than memory: images a second, and how memory grows.

    python benchmarks/large_store.py                      # HCP: 1,113 subjects, 60 slices of 256²
    python benchmarks/large_store.py --subjects 31000     # 240 GB

The shards are sparse files, all zeros, which take no room: what is measured is everything but the
disk, whose part is told as the rate in MB/s that it would have to deliver. Batches come from the
training's own loader, in random order. Memory is that of this process and its workers without the
pages of the files, which the system drops when it needs the room.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measure import Spread, machine

from data_prep.config import PrepareConfig
from data_prep.store import Store, SubjectEntry, new_manifest, write_manifest
from pipeline.data.config import DataConfig
from pipeline.data.slices import Batches, EpochSampler, SliceDataset

MIB = 2**20


def sparse_store(folder: Path, subjects: int, slices: int, side: int) -> Store:
    """A store of `subjects` training shards (slices,1,side,side) that take no room on disk."""
    (folder / "slices").mkdir(parents=True)
    entries = []
    for number in range(subjects):
        name = f"{100000 + number}"
        path = folder / f"slices/{name}.npy"
        with path.open("wb") as file:
            header = {"descr": "<u2", "fortran_order": False, "shape": (slices, 1, side, side)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + 2 * slices * side**2)
        entries.append(
            SubjectEntry(
                subject=name,
                family=name,
                split="train",
                source=f"{name}.nii.gz",
                source_sha256=f"{number:064d}",
                source_bytes=1,
                source_mtime_ns=1,
                mask="",
                mask_bytes=0,
                mask_mtime_ns=0,
                slice_indices=tuple(range(slices)),
                affine=tuple(tuple(map(float, row)) for row in np.eye(4)),
                cropped=False,
                shard=f"slices/{name}.npy",
                shard_sha256=f"{number:064d}",
                shard_bytes=path.stat().st_size,
            )
        )
    write_manifest(
        folder,
        new_manifest(
            name=folder.name,
            simulated=True,
            configuration=PrepareConfig(size=side).recorded(),
            image_shape=(1, side, side),
            spacing_mm=205 / side,
            orientation="rows A>P, columns L>R",
            plane="axial",
            subjects=entries,
            quarantined=[],
        ),
    )
    return Store.open(folder)


def own_memory() -> float:
    """MiB of this process and its children, what they share counted once; Linux only."""
    found = 0.0
    for process in (os.getpid(), *_children(os.getpid())):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except (ProcessLookupError, FileNotFoundError):  # a child that has just ended
            continue
        found += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon")) / 1024
    return found


def _children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in text.split()]


def measure(store: Store, workers: int, batch: int, seconds: float, seed: int) -> dict[str, float]:
    """Images/s in blocks of 20 batches, and the growth of memory after the first of them."""
    data = SliceDataset(store, store.subjects("train"))
    sampler = EpochSampler(len(data), batch, seed)
    batches = iter(
        Batches(data, sampler, DataConfig(workers=workers, on_device="never"), torch.device("cpu"))
    )
    speeds, memory = [], []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        start, seen = time.perf_counter(), 0
        for _ in range(20):
            found = next(batches, None)
            seen += 0 if found is None else len(found)
        if not seen:
            break
        speeds.append(seen / (time.perf_counter() - start))
        memory.append(own_memory())
    speed = Spread.of(speeds[1:] or speeds)
    return {
        "workers": workers,
        "median": speed.median,
        "low": speed.low,
        "high": speed.high,
        "first_mib": memory[min(1, len(memory) - 1)],
        "growth_mib": memory[-1] - memory[min(1, len(memory) - 1)],
        "megabytes_per_second": speed.median * 2 * store.image_shape[-1] ** 2 / 1e6,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a Markdown table. Returns the exit code."""
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subjects", type=int, default=1113)
    parser.add_argument("--slices", type=int, default=60, help="of each subject")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each row")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if min(options.subjects, options.slices, options.side, options.batch) < 1:
        print("error: subjects, slices, side and batch must be at least 1", file=sys.stderr)
        return 2
    size = 2 * options.subjects * options.slices * options.side**2
    found = machine(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        store = sparse_store(Path(folder) / "large", options.subjects, options.slices, options.side)
        opened = time.perf_counter() - began
        print(
            f"{options.subjects:,} subjects x {options.slices} slices of {options.side}²: "
            f"{size / 1e9:.1f} GB, written and opened in {opened:.1f} s; {found['processor']}, "
            f"{found['cores']} cores, torch {found['torch']}\n"
        )
        print("| workers | images/s | MB/s of a disk | memory at first, MiB | growth, MiB |")
        print("|---|---|---|---|---|")
        for workers in options.workers:
            row = measure(store, workers, options.batch, options.seconds, options.seed)
            print(
                f"| {workers} | {row['median']:.0f} ({row['low']:.0f}–{row['high']:.0f}) | "
                f"{row['megabytes_per_second']:.0f} | {row['first_mib']:.0f} | "
                f"{row['growth_mib']:.0f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
