"""A decoder package as the prior of somebody else's reconstruction."""

from collections.abc import Callable
from types import ModuleType

import pytest

from data_prep import Store
from pipeline.decoder_package import DecoderPackage


def test_deepinv_reconstructs_under_a_decoder(
    trained: DecoderPackage,
    tiny_store: Store,
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("deepinv", reason="needs the extra `bench`")
    module = example("deepinv_reconstruction")
    monkeypatch.setattr(module, "load", lambda _: trained)
    zero_filling, decoder = module.main("tiny", str(tiny_store.path))
    assert decoder > zero_filling + 1
