"""The step as a CUDA graph is the step; where there is no GPU it is left alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.distributed import Processes
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import Level, ModelConfig
from pipeline.training.objective import build_objective
from pipeline.training.step import TrainingStep

CONFIG = Config(
    model=ModelConfig(
        levels=[Level(4, 2), Level(8, 1, opens=0.5)], width=4, max_width=8, kernel_hidden=8
    ),
    likelihood=LikelihoodConfig(kernel_size=5, warmup_epochs=1),
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def _trained(device: str, *, graph: bool, precision: str = "float32") -> tuple[Tensor, list[float]]:
    """Weights and distortions of 12 steps: a warm-up, then the blur term; a level opens at 6."""
    torch.manual_seed(0)
    settings = replace(CONFIG.training, cuda_graph=graph, precision=precision)
    objective = build_objective(CONFIG, (1, 32, 32))
    step = TrainingStep(objective, settings, Processes(device))
    random = torch.Generator().manual_seed(1)
    distortions = []
    for number in range(12):
        objective.vae.decoder.open(number / 12)
        images = torch.rand(4, 1, 32, 32, generator=random).to(step.processes.device)
        if number == 8:
            images = images * torch.nan  # skipped, and leaves nothing behind
        noise = torch.randn(4, CONFIG.model.latent_size, generator=random).to(images.device)
        found = step(images, noise, beta=0.1 * number, warm_up=number < 4)
        assert bool(found) == (number != 8)
        distortions += [found["distortion"]] if found else []
    assert (step._captured is not None) == (graph and device == "cuda")
    return torch.cat([p.detach().flatten().cpu() for p in objective.parameters()]), distortions


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_captured_step_is_the_step(precision: str) -> None:
    """Through the warm-up's end, an opening level, a moving β and a batch that is skipped."""
    torch.backends.cudnn.allow_tf32 = False
    plain, one = _trained("cuda", graph=False, precision=precision)
    captured, other = _trained("cuda", graph=True, precision=precision)
    # Adam's first steps are of the learning rate's size, 4e-3, whatever a gradient's rounding.
    tolerance = 1e-3 if precision == "float32" else 2e-2
    torch.testing.assert_close(captured, plain, rtol=0.0, atol=tolerance)
    torch.testing.assert_close(torch.tensor(other), torch.tensor(one), rtol=tolerance, atol=0.0)


def test_on_a_cpu_the_setting_changes_nothing() -> None:
    plain, _ = _trained("cpu", graph=False)
    asked, _ = _trained("cpu", graph=True)
    assert torch.equal(plain, asked)
