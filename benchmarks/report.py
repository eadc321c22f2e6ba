"""What was measured, as Markdown and as a figure."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from peers import PROJECT
from quality import KEPT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = dict[str, Any]

# Heading and format of each metric.
METRICS = {
    "lpips_alex": ("LPIPS alex", "{:.4f}"),
    "psnr": ("PSNR, dB", "{:.2f}"),
    "high_frequency_ratio": ("high-frequency ratio", "{:.3f}"),
}
# A palette that readers with red-green colour blindness can tell apart (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TICKS = (5, 10, 20, 60, 120, 300, 600, 1800, 3600)
READING_TARGET = 10.0


def markdown(results: Results) -> str:
    """The parts that `results` holds, each with its tables and what must be known to read them."""
    sections = [_header(results)]
    for name, section in (
        ("terms", _terms),
        ("quality", _quality),
        ("throughput", _throughput),
        ("reading", _reading),
    ):
        if name in results:
            sections.append(section(results[name]))
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def spread(value: dict[str, float], form: str = "{:.3f}") -> str:
    """A median and its quartiles."""
    median, low, high = (form.format(value[key]) for key in ("median", "low", "high"))
    return f"{median} ({low}–{high})"


def seconds(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.0f} s"


def _header(results: Results) -> list[str]:
    machine, store = results["machine"], results["store"]
    return [
        "# Training benchmark",
        "",
        f"- machine: {machine['processor']}, {machine['cores']} cores, {machine['threads']} "
        f"threads, torch {machine['torch']}, GPU: {machine['gpu'] or 'none'}",
        f"- store: {store['name']}, digest {store['digest']}, {store['training_slices']} training "
        f"slices, {store['validation_people']} validation subjects"
        + (", simulated" if store["simulated"] else ""),
        f"- seed {results['seed']}, configuration {results['config']}",
        f"- command: `{results['command']}`",
        "",
        "Figures in parentheses are quartiles.",
    ]


def _terms(rows: list[dict[str, Any]]) -> list[str]:
    def row(found: dict[str, Any]) -> list[str]:
        side, kernel, target = found["side"], found["kernel_size"], found["target"]
        return [
            f"{side}×{side}",
            f"{kernel}×{kernel}",
            str(found["batch"]),
            f"{1000 * found['seconds']['gaussian']['median']:.0f} ms",
            spread(found["ratio"]["blur"]),
            f"≤ {target:.2f}" if target else "–",
            spread(found["ratio"]["straightforward"]),
        ]

    header = ("images", "kernel", "batch", "step, Gaussian term", "blur term, times as long",
              "target", "straightforward blur term, times as long")  # fmt: skip
    rounds = ", ".join(f"{found['rounds']} at {found['side']}²" for found in rows)
    largest = max(found["relative_difference"] for found in rows)
    levels = "; ".join(f"at {found['side']}² {found['levels']}" for found in rows)
    return [
        "## The blur term against the plain Gaussian term",
        "",
        *table(header, map(row, rows)),
        "",
        "Whole training steps (both optimisers, averaged weights) with the default network, the "
        f"same images and weights, taking turns; medians of the ratio in each round ({rounds}). "
        "The straightforward version has full complex FFTs in the likelihood, a grouped "
        "convolution with circular padding in the kernel loss, and evaluates the kernel network "
        f"twice; its loss differs by at most {largest:.1e} of its value. Levels of the latent: "
        f"{levels}.",
    ]


def _quality(found: dict[str, Any]) -> list[str]:
    minutes = found["seconds"] / 60
    header = ["model", "parameters", "steps", "images/s"]
    header += [f"best {title}" for title, _ in METRICS.values()]
    header += [f"{title} at the end" for title, _ in METRICS.values()] + ["rate at the end, nats"]
    lines = [
        f"## Time to quality: {minutes:g} minutes each",
        "",
        *table(header, (_run(run, found["best"][run["name"]]) for run in found["runs"])),
        "",
        "![Scores over seconds](time_to_quality.png)",
        "",
        *_comparison(found),
        "",
        "How to read this:",
        "",
        "- Scores are of validation subjects, at most 16 slices each, reconstructed from the "
        "posterior's mean: the mean over subjects of the mean over slices.",
        "- The best of each metric is over the whole run. High frequencies, best where the ratio "
        f"is nearest 1, count only where PSNR is within {KEPT:g} dB of the run's best: the noise "
        "of a network that has hardly learned has high frequencies, too (see the figure).",
        "- Slices, their order, augmentation and batch size are the same for all.",
        "- Peers are not charged for being scored. This project is: its clock is that of the real "
        "training loop, which also validates, writes checkpoints and scores at the ends of epochs "
        "only.",
        "- Rates differ: a model that spends more nats may keep more detail.",
    ]
    lines += [f"- {run['name']}: {run['notes']}." for run in found["runs"]]
    lines += [
        f"- {run['name']} was no longer finite after {run['steps']} steps."
        for run in found["runs"]
        if run["diverged"]
    ]
    return lines + [f"- {note}" for note in found["left_out"]]


def _run(run: dict[str, Any], best: dict[str, dict[str, Any] | None]) -> list[str]:
    last = run["curve"][-1] if run["curve"] else None
    cells = [run["name"], f"{run['parameters']:,}", f"{run['steps']:,}"]
    cells.append(f"{run['images_per_second']:.1f}")
    for name, (_, form) in METRICS.items():
        point = best[name]
        cells.append(f"{form.format(point[name])} ({point['seconds']:.0f} s)" if point else "–")
    cells += [form.format(last[name]) if last else "–" for name, (_, form) in METRICS.items()]
    return [*cells, f"{last['rate']:.0f}" if last else "–"]


def _comparison(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, (title, form) in METRICS.items():
        row = found["comparison"].get(name)
        if row is None:
            rows.append([title, "none counts", "–", "–", "–", "–"])
            continue
        faster = f"{row['peer_seconds'] / row['seconds']:.1f}" if row["seconds"] else "–"
        rows.append(
            [
                title,
                f"{form.format(row['value'])}, {row['peer']}",
                seconds(row["peer_seconds"]),
                seconds(row["seconds"]),
                faster,
                "yes" if row["within_a_fifth"] else "no",
            ]
        )
    together = found["comparison"]["all"]
    rows.append(["all at once", "–", "–", seconds(together["seconds"]), "–",
                 "yes" if together["within_a_fifth"] else "no"])  # fmt: skip
    header = ("metric", "best of a peer", "reached after", "by this project after",
              "times as fast", f"within a fifth ({found['seconds'] / 5:.0f} s)")  # fmt: skip
    return table(header, rows)


def _throughput(rows: list[dict[str, Any]]) -> list[str]:
    sizes = list(rows[0]["images_per_second"])
    header = ["model", "parameters", "multiply-adds an image, millions"]
    header += [f"images/s, batch {size}" for size in sizes]
    return [
        "## Throughput of a training step",
        "",
        *table(
            header,
            (
                [
                    row["name"],
                    f"{row['parameters']:,}",
                    f"{row['multiply_adds'] / 1e6:,.0f}",
                    *(spread(row["images_per_second"][size], "{:.1f}") for size in sizes),
                ]
                for row in rows
            ),
        ),
        "",
        "Models take turns; images lie in memory. Multiply-adds are those of convolutions and "
        "matrix products in one training step, forward and backward, as torch's FlopCounterMode "
        "counts them, halved; FFTs, normalisation and work on single values are not in it.",
    ]


def _reading(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, speed in found["images_per_second"].items():
        times = spread(found["ratio"][name], "{:.1f}") if name in found["ratio"] else "1"
        target = f"≥ {READING_TARGET:g}" if name == "reading" else "–"
        rows.append([name, spread(speed, "{:.0f}"), times, target])
    return [
        "## Reading",
        "",
        *table(("what", "images/s", "times what training takes", "target"), rows),
        "",
        f"Epochs of batches of {found['batch']} from the store, {found['workers']} worker "
        "processes, files in the system's cache, against this project's training step on images "
        "in memory, taking turns.",
    ]


def figure(found: dict[str, Any]) -> "Figure":
    """Curves of the metrics over seconds, a line per model; dotted: a fifth of the time."""
    from matplotlib.figure import Figure  # tables can be had without it

    ticks = [tick for tick in TICKS if tick <= 1.5 * found["seconds"]]
    points = [point for run in found["runs"] for point in run["curve"]]
    shown = {m: v for m, v in METRICS.items() if any(point[m] is not None for point in points)}
    hints = {"lpips_alex": "lower is better", "psnr": "higher is better"}
    drawn = Figure(figsize=(1 + 4 * len(shown), 4.2), layout="constrained")
    panels = drawn.subplots(1, len(shown), squeeze=False)[0]
    for axes, (name, (title, _)) in zip(panels, shown.items(), strict=True):
        for run, colour in zip(found["runs"], COLOURS, strict=False):
            times = [point["seconds"] for point in run["curve"]]
            values = [point[name] for point in run["curve"]]
            width = 2.4 if run["name"] == PROJECT else 1.4
            axes.plot(times, values, ".-", color=colour, linewidth=width, label=run["name"])
        if name == "high_frequency_ratio":
            axes.set_yscale("log")
            axes.axhline(1.0, color="grey", linewidth=0.8)
        axes.axvline(found["seconds"] / 5, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("seconds of training")
        axes.set_title(f"{title} ({hints.get(name, '1 is as sharp')})")
        axes.grid(alpha=0.3)
    drawn.axes[0].legend(fontsize=9)
    drawn.suptitle("Validation subjects; dotted: a fifth of the time", fontsize=10)
    return drawn
