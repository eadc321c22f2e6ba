"""The page of made-up scores, which tests of the report share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.evaluation import figures
from pipeline.evaluation.report import About, Evaluation, page
from pipeline.evaluation.scoring import Networks, Pair, Tally
from pipeline.figures import write_figure
from pipeline.metrics.catalogue import GROUPS
from pipeline.metrics.statistics import Interval


@pytest.fixture
def page_writer(tmp_path: Path) -> Callable[..., str]:
    """Writes the page of made-up scores and returns its text."""

    def write(name: str = "p01", channels: int = 1, place: int | None = 40, **changes: Any) -> str:
        clean = torch.rand(3, channels, 16, 16, generator=torch.Generator().manual_seed(0))
        made = (clean + torch.tensor([0.1, 0.2, 0.3])[:, None, None, None]).clamp(0, 1)
        tally = Tally(Networks())
        tally.rows = [{"subject": name, "slices": 3}]
        tally.shown = [Pair(name, place, 20.0 + i, clean[i], made[i]) for i in range(3)]
        tally.best, tally.worst = tally.shown[2:], tally.shown[:1]
        power = torch.linspace(1, 0.5, 9)
        kernels = dict.fromkeys((1, 9), torch.full((1, 1, 3, 3), 1 / 9))
        drawn = {
            "spectra.png": figures.spectra((16, 16), {"data": power, "samples": power / 2}, ""),
            "kernels.png": figures.kernels(clean[:1], kernels, ""),
        }
        for file, figure in drawn.items():
            write_figure(tmp_path / "figures" / file, figure)
        score: Interval = {"mean": 0.5, "low": 0.25, "high": 0.75}
        metrics = {metric.key: score for group in GROUPS.values() for metric in group}
        metrics["blur_effect_data"] = {"mean": 0.341, "low": 0.3, "high": 0.4}
        about = changes.pop("about", None) or About(
            name, "scores", "Trained", simulated=True, commands=["a & b"], settings=f"run: {name}"
        )
        content: dict[str, Any] = {
            "metrics": metrics,
            "tally": tally,
            "figures": drawn,
            "absent": {"fid": f"no weights for {name}"},
            "samples": clean,
            "data": clean,
            "drawn": "z ~ N(0, I)",
        }
        text = page(tmp_path, Evaluation(**(content | changes)), about)
        (tmp_path / "report.html").write_text(text, encoding="utf-8")
        return text

    return write
