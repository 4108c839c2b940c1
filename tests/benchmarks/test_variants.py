"""Settings of kernel variants: what they name is changed while a variant is measured, and as before afterwards."""

from types import SimpleNamespace

import pytest
from sala_kernels.select_blocks import lse
from triton.runtime.jit import JITFunction

from benchmarks.operators.variants import applied, settings


def test_settings_have_names_and_numbers():
    assert settings("") == {}
    assert settings("_score_kernel.num_stages=3 sala_kernels.select_blocks.lse.TILE_SLOTS=128") == {
        "_score_kernel.num_stages": 3,
        "sala_kernels.select_blocks.lse.TILE_SLOTS": 128,
    }


@pytest.mark.parametrize("word", ["num_stages=3", "_score_kernel.num_stages", "_score_kernel.num_stages=x"])
def test_other_words_are_refused(word):
    with pytest.raises(ValueError, match=word):
        settings(word)


def test_launches_and_constants_are_changed_for_a_while(monkeypatch):
    launched = []
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **kwargs: launched.append(kwargs))
    original, tile = JITFunction.run, lse.TILE_SLOTS

    kernel = SimpleNamespace(fn=SimpleNamespace(__name__="_score_kernel"))
    with applied("_score_kernel.num_stages=3 sala_kernels.select_blocks.lse.TILE_SLOTS=7"):
        JITFunction.run(kernel, num_stages=2, num_warps=4)
        assert lse.TILE_SLOTS == 7
    assert launched == [{"num_stages": 3, "num_warps": 4}]
    assert (JITFunction.run, lse.TILE_SLOTS) == (original, tile)
