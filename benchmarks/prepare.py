"""How fast an HCP-size volume is prepared, beside `gzip -dc` and a plain chain of MONAI transforms.

    python benchmarks/prepare.py [--rounds 7] [--folder DIR]

Generates a volume of 260 x 311 x 260 voxels of 0.7 mm, float32, as gzip, and times in turn, each in
a process of its own with one thread:

  stage   verify, percentiles, slices, shard: what the stage does for one subject
  gzip    gzip -dc FILE > /dev/null
  monai   LoadImage, Orientation, ScaleIntensityRangePercentiles, Resize

Stage and chain are timed on the second volume of a process, as a worker meets hundreds; imports do
not count. Figures are processor seconds, so that what else runs on the machine weighs little, and
medians of the ratios in each round. Memory is the peak resident set of the process, interpreter
included. Two workers against one is reported twice: by the clock, which means something only
where two cores are idle, and by processor seconds per volume, which shows what workers cost one
another.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (260, 311, 260)
VOXEL_MM = 0.7
VOLUME_BYTES = int(np.prod(SHAPE)) * 4
KINDS = ("head", "brain")


def volume(kind: str, seed: int = 0) -> np.ndarray:
    """(X, Y, Z) float32: smooth anatomy with noise in an ellipsoid, as large as a brain.

    brain: exactly 0 around it, as in skull-stripped images (about 16 MB as gzip). head: another
    tissue and the noise of air around it, as in HCP's T1w_acpc_dc_restore (60 to 90 MB).
    """
    from scipy import ndimage

    generator = np.random.default_rng(seed)
    coarse = generator.standard_normal([n // 8 + 2 for n in SHAPE]).astype(np.float32)
    zoom = [n / c for n, c in zip(SHAPE, coarse.shape, strict=True)]
    smooth = ndimage.zoom(coarse, zoom, order=1)
    half = np.array([68, 86, 66]) / VOXEL_MM
    radius = sum(
        (((np.arange(n, dtype=np.float32) - n / 2) / h) ** 2).reshape(
            [-1 if a == axis else 1 for a in range(3)]
        )
        for axis, (n, h) in enumerate(zip(SHAPE, half, strict=True))
    )
    radius = radius + np.float32(0.05) * smooth
    noise = generator.standard_normal(SHAPE, dtype=np.float32)
    tissue = np.maximum(700 + 150 * smooth + 20 * noise, 1)
    if kind == "brain":
        return np.where(radius < 1, tissue, 0).astype(np.float32)
    return np.where(radius < 1.7, tissue, 8 * np.abs(noise) + 1e-3).astype(np.float32)


def generate(folder: Path, kind: str, volumes: int = 2) -> None:
    """folder/KIND/1.nii.gz and copies: NIfTI as HCP stores it, from right to left."""
    import gzip

    import nibabel as nib

    affine = np.diag([-VOXEL_MM, VOXEL_MM, VOXEL_MM, 1])
    affine[:3, 3] = 90, -126, -72
    content = gzip.compress(nib.Nifti1Image(volume(kind), affine).to_bytes(), 6)
    (folder / kind).mkdir(parents=True)
    for number in range(volumes):
        (folder / kind / f"{number + 1}.nii.gz").write_bytes(content)


def configuration(folder: Path, kind: str, workers: int = 1) -> Any:
    from data_prep.config import PrepareConfig

    return PrepareConfig(
        name=kind,
        source="hcp",
        root=str(folder / kind),
        template="{subject}.nii.gz",
        spacing_mm=3.2,
        workers=workers,
    )


def stage(folder: Path, kind: str) -> None:
    from data_prep.sources import path_template
    from data_prep.sources.source import Job
    from data_prep.sources.volumes import transform

    config = configuration(folder, kind)
    job = Job(path_template.discover(config)[0][0], config, folder / "store")
    transform(job)
    begin = time.process_time()
    transform(job)
    report(begin)


def monai(folder: Path, kind: str) -> None:
    from monai.transforms import (
        Compose,
        LoadImage,
        Orientation,
        Resize,
        ScaleIntensityRangePercentiles,
    )

    chain = Compose(
        [
            LoadImage(reader="NibabelReader", image_only=True, ensure_channel_first=True),
            Orientation(axcodes="RAS", labels=None),
            ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True),
            Resize((64, 64, 64)),
        ]
    )
    for _ in range(2):
        begin = time.process_time()
        chain(str(folder / kind / "1.nii.gz"))
    report(begin)


def many(folder: Path, kind: str, workers: int, volumes: int) -> None:
    """Volumes a second, and processor seconds a volume, of workers that have started already."""
    from data_prep.executors.local import run_in_processes
    from data_prep.sources import path_template
    from data_prep.sources.source import Job

    config = configuration(folder, kind, workers)
    found = path_template.discover(config)[0]
    jobs = [Job(found[n % len(found)], config, folder / f"store{n}") for n in range(volumes)]
    # The first result of each worker carries its start and its imports: not counted.
    done = list(run_in_processes(workers, timed, jobs, lambda job: (0.0, 0.0)))
    ends, seconds = zip(*sorted(done)[workers:], strict=True)
    rate = (len(ends) - 1) / (ends[-1] - ends[0])
    print(json.dumps({"rate": rate, "seconds": float(np.median(seconds))}))


def timed(job: Any) -> tuple[float, float]:
    """When one subject was done, and the processor seconds it took."""
    from data_prep.sources.volumes import transform

    begin = time.process_time()
    transform(job)
    return time.perf_counter(), time.process_time() - begin


def report(begin: float) -> None:
    seconds = time.process_time() - begin
    # Not ru_maxrss: a child inherits its parent's. This one is the program's own.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def child(*arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, *map(str, arguments)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def unpack(folder: Path, kind: str) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(os.devnull, "wb") as nothing:
        subprocess.run(["gzip", "-dc", folder / kind / "1.nii.gz"], stdout=nothing, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime}


def measure(folder: Path, kind: str, rounds: int, workers: bool) -> list[str]:
    """Lines of the report's table on one kind of volume."""
    generate(folder, kind)
    size = (folder / kind / "1.nii.gz").stat().st_size
    results: dict[str, list[dict[str, float]]] = {"stage": [], "gzip": [], "monai": []}
    for round_ in range(rounds):
        results["stage"].append(child("stage", folder, kind))
        results["gzip"].append(unpack(folder, kind))
        if round_ < max(3, rounds // 2):
            results["monai"].append(child("monai", folder, kind))
    seconds = {name: [r["seconds"] for r in found] for name, found in results.items()}

    def ratio(one: str, other: str) -> str:
        low, middle, high = np.quantile(
            [a / b for a, b in zip(seconds[one], seconds[other], strict=False)], [0, 0.5, 1]
        )
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"

    def peak(name: str) -> str:
        most = max(r["peak"] for r in results[name])
        return f"{most / VOLUME_BYTES:.2f} ({most / 2**20:.0f} MiB)"

    clock, cost = "not measured", "not measured"
    if workers:
        pairs = [[child("many", folder, kind, n, 24) for n in (1, 2)] for _ in range(3)]
        clock = f"{np.median([two['rate'] / one['rate'] for one, two in pairs]):.2f}"
        cost = f"{np.median([2 * one['seconds'] / two['seconds'] for one, two in pairs]):.2f}"
    medians = ", ".join(f"{name} {np.median(s):.2f} s" for name, s in seconds.items())
    return [
        f"| {kind}, {size / 1e6:.0f} MB | {ratio('stage', 'gzip')} | {ratio('monai', 'stage')} | "
        f"{peak('stage')} | {peak('monai')} | {clock} | {cost} |",
        medians,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the volumes are written (default: tmp)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--skip-workers", action="store_true", help="one worker only: minutes less")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        lines = [
            measure(Path(folder), kind, arguments.rounds, not arguments.skip_workers)
            for kind in arguments.kinds
        ]
    print(
        "| volume | stage / gzip -dc | monai / stage | peak memory / volume | monai's "
        "| 2 workers, clock | 2 workers, processor |"
    )
    print("|---|---|---|---|---|---|---|")
    print("\n".join(table for table, _ in lines))
    print(
        "\n".join(
            f"\nmedian processor seconds, {kind}: {text}"
            for kind, (_, text) in zip(arguments.kinds, lines, strict=True)
        )
    )
    print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    if sys.argv[1:2] in (["stage"], ["monai"]):
        {"stage": stage, "monai": monai}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
    elif sys.argv[1:2] == ["many"]:
        many(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
