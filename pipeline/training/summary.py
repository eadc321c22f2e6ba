"""An epoch's metrics in words."""

from pipeline.training.objective import rate_key


def levels_of(metrics: dict[str, float]) -> dict[int, float]:
    """Each level's rate in nats, by its side, as an epoch's metrics have them."""
    prefix = rate_key(0).removesuffix("0")
    return {
        int(key.removeprefix(prefix)): value
        for key, value in metrics.items()
        if key.startswith(prefix)
    }


def summary(metrics: dict[str, float]) -> str:
    """An epoch in a few words, those that matter most first: a narrow terminal cuts the rest."""
    shown = {
        "distortion": "distortion {:.0f}",
        "rate": "rate {:.0f} nats",
        "kernel_width": "width {:.2f} px",
        "validation_psnr": "validation {:.2f} dB",
        "validation_high_frequency_ratio": "high frequencies {:.2f}",
        "beta": "β {:.2f}",
        "kernel_loss": "kernel loss {:.2f}",
        "images_per_second": "{:.0f} images/s",
    }
    words = [text.format(metrics[key]) for key, text in shown.items() if key in metrics]
    if metrics.get("skipped_batches"):
        words.append(f"{metrics['skipped_batches']:.0f} batches skipped")
    return ", ".join(words)


def rates(metrics: dict[str, float]) -> str:
    """The rate of each level; nothing where there is one level."""
    parts = [f"{side}²: {rate:.0f}" for side, rate in levels_of(metrics).items()]
    return f"rate by level {', '.join(parts)} nats" if len(parts) > 1 else ""
