"""The configuration of the smallest run that passes through everything: seconds to train."""

from typing import Any

TINY: dict[str, Any] = {
    "prepare": {"size": 32},
    "data": {"store": "tiny"},
    "model": {
        "levels": [{"side": 4, "channels": 2}, {"side": 8, "channels": 1, "opens": 0.2}],
        "width": 4,
        "max_width": 8,
        "residual_blocks": 0,
        "kernel_hidden": 8,
    },
    "likelihood": {"kernel_size": 5, "warmup_epochs": 1, "residual_steps": 2},
    "training": {
        "epochs": 3,
        "batch_size": 6,
        "lr_warmup_steps": 2,
        "rate_warmup_steps": 2,
        "device": "cpu",
        "threads": 1,
    },
    "prior": {"pieces": 4, "images": 40},
    "evaluation": {"samples": 4},
}
