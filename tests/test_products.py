"""Which kernel of SGLang computes the products of a decode step of one request."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.arg_groups import overrides

from sala_sglang import products

ARGUMENTS = {"bf16_gemm_backend": "auto", "device": "cuda", "enable_deterministic_inference": False}
ARGUMENTS |= {"rl_on_policy_target": None}


@pytest.fixture
def hopper(monkeypatch):
    """A machine with an H100 and a CUDA compiler."""
    monkeypatch.setattr(overrides, "resolution_result", lambda arguments, name: getattr(arguments, name))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(products, "_has_compiler", lambda: True)
    return monkeypatch


def declared(**changes) -> dict[str, str]:
    return products.backend_for_one_row(SimpleNamespace(**ARGUMENTS | changes))


def test_gemv_on_hopper(hopper):
    assert declared() == {"bf16_gemm_backend": "gemv"}


@pytest.mark.parametrize(
    "changes",
    [
        {"bf16_gemm_backend": "torch"},
        {"device": "cpu"},
        {"enable_deterministic_inference": True},
        {"rl_on_policy_target": "fsdp"},
    ],
)
def test_what_was_asked_for_stays(hopper, changes):
    assert declared(**changes) == {}


def test_not_on_another_gpu_or_without_a_compiler(hopper):
    hopper.setattr(products, "_has_compiler", lambda: False)
    assert declared() == {}
    hopper.setattr(products, "_has_compiler", lambda: True)
    hopper.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    assert declared() == {}
