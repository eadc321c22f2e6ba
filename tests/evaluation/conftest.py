"""What tests of the report share: the page of made-up scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.evaluation import figures
from pipeline.evaluation.pairs import Pair
from pipeline.evaluation.report import About, Evaluation, report
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
        power = torch.linspace(1, 0.5, 9)
        curves = {"data": power, "reconstruction": 0.9 * power}
        drawn = {
            "spectra.png": figures.spectra((16, 16), curves, ""),
            "kernels.png": figures.kernels(
                clean[:1], dict.fromkeys((1, 9), torch.full((1, 1, 3, 3), 1 / 9)), ""
            ),
        }
        for file, figure in drawn.items():
            write_figure(tmp_path / "figures" / file, figure)
        metrics: dict[str, Interval] = {
            metric.key: {"mean": 0.5, "low": 0.25, "high": 0.75} for metric in METRICS
        }
        metrics |= {"blur_effect_data": {"mean": 0.341, "low": 0.3, "high": 0.4}}
        about = changes.pop("about", None) or About(
            name, "scores", "Trained", simulated=True, commands=["a & b"], settings=f"run: {name}"
        )
        content: dict[str, Any] = {
            "metrics": metrics,
            "rows": [{"subject": name, "slices": 3}],
            "figures": drawn,
            "absent": {"fid": f"no weights for {name}"},
            "pairs": pairs,
            "best": pairs[2:],
            "worst": pairs[:1],
            "samples": clean,
            "data": clean,
            "drawn": "z ~ N(0, I)",
        }
        page = report(tmp_path, Evaluation(**(content | changes)), about)
        (tmp_path / "report.html").write_text(page, encoding="utf-8")
        return page

    return write
