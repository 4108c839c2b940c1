"""Up to which size prefill is captured, unless the user says so."""

from types import SimpleNamespace

import pytest
from sglang.srt.arg_groups import overrides

from sala_sglang.prefill_graphs import MAX_TOKENS, default_size

SIZES = dict.fromkeys(("cuda_graph_max_bs_prefill", "cuda_graph_bs_prefill", "cuda_graph_config"))


@pytest.fixture(autouse=True)
def plain_arguments(monkeypatch):
    monkeypatch.setattr(overrides, "resolution_result", getattr)


def test_short_steps_alone():
    assert default_size(SimpleNamespace(**SIZES)) == {"cuda_graph_max_bs_prefill": MAX_TOKENS}


@pytest.mark.parametrize(
    "given", [{"cuda_graph_max_bs_prefill": 64}, {"cuda_graph_bs_prefill": [8]}, {"cuda_graph_config": {"prefill": {}}}]
)
def test_what_was_asked_for_stays(given):
    assert default_size(SimpleNamespace(**SIZES | given)) == {}
