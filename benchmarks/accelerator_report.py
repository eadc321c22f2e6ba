"""What accelerator.py measured, as Markdown."""

from typing import Any

from report import spread, table

Results = dict[str, Any]


def markdown(results: Results) -> str:
    """The parts that `results` holds, each with its table and what must be known to read it."""
    sections = [_header(results)]
    for name, section in (
        ("agreement", _agreement),
        ("speed", _speed),
        ("terms", _terms),
        ("repeat", _repeat),
        ("training", _training),
    ):
        if results.get(name):
            sections.append(section(results[name]))
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _header(results: Results) -> list[str]:
    machine, store = results["machine"], results["store"]
    device = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    if machine["gpu"]:
        device = (
            f"{machine['gpu']}, {machine['gpu_gib']:.0f} GiB, driver {machine['driver']}, "
            f"CUDA {machine['cuda']}; {device}"
        )
    simulated = ", simulated people" if store["simulated"] else ""
    return [
        "# One accelerator",
        "",
        f"- device: {device}, torch {machine['torch']}",
        f"- store: {store['name']}, digest {store['digest'][:12]}, {store['training_slices']} "
        f"training slices of {store['side']}², {store['validation_subjects']} validation "
        f"subjects{simulated}",
        f"- seed {results['seed']}, training configuration {results['config']}",
        f"- command: `{results['command']}`",
        "",
        "Figures in parentheses are quartiles.",
    ]


def _agreement(found: dict[str, Any]) -> list[str]:
    rows = [[name, f"{of['A']:.1e}", f"{of['B']:.1e}"] for name, of in found["errors"].items()]
    verdict = "yes" if found["agrees"] else "**no**"
    return [
        "## Gradients against a CPU in float64",
        "",
        *table(("computed on", "step A (encoder, decoder)", "step B (kernel network)"), rows),
        "",
        f"‖g − g₀‖ / ‖g₀‖ over all parameters of a step, blur term, {found['side']}²; float32 "
        f"within {found['tolerance']:g}: {verdict}. FFTs under bf16: {found['ffts']}.",
    ]


def _repeat(rows: list[dict[str, Any]]) -> list[str]:
    cells = [
        [
            "deterministic algorithms" if row["deterministic"] else "as trained",
            "the same bits" if row["equal"] else f"{row['largest_difference']:.1e}",
        ]
        for row in rows
    ]
    return [
        "## Two runs from one seed",
        "",
        *table(("mode", "largest difference of a weight"), cells),
        "",
        f"After {rows[0]['steps']} steps.",
    ]


def _speed(rows: list[dict[str, Any]]) -> list[str]:
    cells = []
    for row in rows:
        start = [f"{row['side']}²", str(row["batch"]), row["variant"]]
        if "error" in row:
            cells.append([*start, row["error"], "–", "–"])
            continue
        peak = "–" if row["peak_mib"] is None else f"{row['peak_mib'] / 1024:.2f} GiB"
        cells.append(
            [
                *start,
                spread(row["images_per_second"], "{:.0f}"),
                peak,
                f"{row['first_step_seconds']:.1f} s",
            ]
        )
    header = ("images", "batch", "computed in", "images/s", "peak memory", "first step")
    return [
        "## Whole training steps",
        "",
        *table(header, cells),
        "",
        "Both optimisers, averaged weights and the blur term of `hcp64.yaml`, `hcp128.yaml` and "
        "`hcp.yaml`, all levels open, on images in the device's memory; channels_last where it is "
        "not called contiguous.",
    ]


def _terms(rows: list[dict[str, Any]]) -> list[str]:
    cells = [
        [
            f"{row['side']}²",
            f"{row['kernel_size']}²",
            str(row["batch"]),
            f"{1000 * row['seconds']['gaussian']['median']:.1f} ms",
            spread(row["ratio"]["blur"]),
            f"{100 * (1 - 1 / row['ratio']['blur']['median']):.1f}%",
        ]
        for row in rows
    ]
    header = ("images", "kernel", "batch", "step, Gaussian term", "blur term, times as long",
              "share of the step")  # fmt: skip
    return [
        "## Share of the blur term",
        "",
        *table(header, cells),
        "",
        "float32, the network of the training benchmark, the two terms taking turns.",
    ]


def _training(found: dict[str, Any]) -> list[str]:
    cells = []
    for run in found["runs"]:
        last = run["curve"][-1] if run["curve"] else None
        cells.append(
            [
                run["name"],
                f"{run['parameters']:,}",
                f"{run['steps']:,}",
                f"{run['images_per_second']:.0f}",
                f"{last['psnr']:.2f}" if last else "–",
                f"{last['high_frequency_ratio']:.3f}" if last else "–",
                f"{last['rate']:.0f}" if last else "–",
            ]
        )
    header = ("model", "parameters", "steps", "images/s", "PSNR, dB", "high-frequency ratio",
              "rate, nats")  # fmt: skip
    return [
        f"## {found['seconds']:.0f} seconds of training",
        "",
        *table(header, cells),
        "",
        "Validation subjects at the end, averaged weights; the same slices, augmentation and batch "
        f"size for all; this project in {found['precision']}. A step of each before the clock "
        "starts: libraries load and choose their kernels.",
        *(["", "Scores over seconds: accelerator.png."] if cells else []),
        *(f"- {run['name']}: {run['notes']}." for run in found["runs"]),
    ]
