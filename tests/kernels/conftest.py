"""Operator tests run their Triton kernels on the GPU where there is one, else in Triton's interpreter."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def fresh_seed(request) -> None:
    """Another seed for every test and every day, printed with a failure."""
    seed = int(os.environ.get("SALA_TEST_SEED", torch.seed() % 2**31))
    torch.manual_seed(seed)
    request.node.add_report_section("call", "seed", f"SALA_TEST_SEED={seed}")
