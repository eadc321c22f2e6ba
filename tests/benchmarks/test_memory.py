"""benchmarks/memory.py counts what autograd keeps."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import memory

from data_prep.config import PrepareConfig
from pipeline.config import Config
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import Level, ModelConfig

TINY = Config(
    prepare=PrepareConfig(size=32),
    model=ModelConfig(levels=[Level(4, 2), Level(8, 1)], width=8, max_width=16, kernel_hidden=8),
    likelihood=LikelihoodConfig(kernel_size=5),
)


def test_activations_grow_with_the_batch_and_with_the_width_and_weights_do_not() -> None:
    one, weights = memory.step_memory(TINY, 1)
    ten, same = memory.step_memory(TINY, 10)
    assert weights == same and 8 * one < ten < 10 * one
    wide, _ = memory.step_memory(replace(TINY, model=replace(TINY.model, width=16)), 10)
    assert 1.2 * ten < wide < 2.2 * ten
    # At least the widest map of the encoder: 8 channels of 16 x 16 in float32, ten images.
    assert ten * 2**30 > 10 * 8 * 16 * 16 * 4
