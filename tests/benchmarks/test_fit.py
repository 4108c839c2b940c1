"""The loads with which the arithmetic of memory is tried on a GPU."""

import pytest

from benchmarks.serving import fit
from sala_sglang.cards import plan
from sala_sglang.cards.data import CARDS
from sala_sglang.config import SALAConfig


@pytest.mark.parametrize("mib", [24_564, 32_607, 49_140, 81_559])
@pytest.mark.parametrize("weights", fit.WEIGHTS)
def test_planned_loads_fit_and_become_arguments(mib, weights):
    load, options = fit.planned(mib, weights)
    assert plan.spare_bytes(SALAConfig(), CARDS[0]._replace(memory_mib=mib), load) >= 0
    assert options["context_length"] == load.context_tokens <= 2**20
    assert options["max_total_tokens"] == plan.pool_tokens(load.context_tokens)
    assert 0.3 < options["mem_fraction_static"] < 1 and options["max_mamba_cache_size"] >= 5
    assert options.get("quantization") == ("fp8" if weights == "fp8" else None)
    assert options["disable_radix_cache"] is False
