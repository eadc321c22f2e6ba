"""What tests of the report share: the page of made-up scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.evaluation import figures
from pipeline.evaluation.report.about import About
from pipeline.evaluation.report.gathering import Pair, Pictures
from pipeline.evaluation.report.page import Page
from pipeline.evaluation.report.writing import write_report
from pipeline.figures import write_figure
from pipeline.metrics.catalogue import GROUPS
from pipeline.metrics.statistics import Interval

METRICS = [metric for group in GROUPS.values() for metric in group]


@pytest.fixture
def page_writer(tmp_path: Path) -> Callable[..., str]:
    """Writes the page of made-up scores and returns its text."""

    def write(name: str = "p01", channels: int = 1, **changes: Any) -> str:
        generator = torch.Generator().manual_seed(0)
        clean = torch.rand(3, channels, 16, 16, generator=generator)
        errors = torch.tensor([0.1, 0.2, 0.3])[:, None, None, None]
        made = (clean + errors).clamp(0, 1)
        pairs = [Pair(name, 40 + i, 20.0 + i, clean[i], made[i]) for i in range(3)]
        frequencies = torch.linspace(0, 0.5, 5)
        drawn = {
            "spectra.png": figures.spectra(
                frequencies, {"data": 1 - frequencies, "reconstruction": 0.9 - frequencies}
            ),
            "kernels.png": figures.kernels(
                clean[:1], {1: torch.full((1, 3, 3), 1 / 9), 9: torch.full((1, 3, 3), 1 / 9)}
            ),
        }
        for file, figure in drawn.items():
            write_figure(tmp_path / "figures" / file, figure)
        metrics: dict[str, Interval] = {
            metric.key: {"mean": 0.5, "low": 0.25, "high": 0.75} for metric in METRICS
        }
        metrics |= {"blur_effect_data": {"mean": 0.341, "low": 0.3, "high": 0.4}}
        content = {
            "about": About(name, "scores", "Trained", simulated=True, commands=["a & b"],
                           settings=f"run: {name}"),
            "metrics": metrics,
            "rows": [{"subject": name, "slices": 3}],
            "pictures": Pictures(pairs, pairs[2:], pairs[:1], clean, clean, "z ~ N(0, I)"),
            "figures": list(drawn),
            "absences": {"fid": f"no weights for {name}"},
            "folder": tmp_path,
        }  # fmt: skip
        return write_report(Page(**(content | changes))).read_text(encoding="utf-8")

    return write
