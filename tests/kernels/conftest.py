"""What tests of operators share."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_seed(request) -> None:
    """Another seed for every test and every day, printed with a failure."""
    seed = int(os.environ.get("SALA_TEST_SEED", torch.seed() % 2**31))
    torch.manual_seed(seed)
    request.node.add_report_section("call", "seed", f"SALA_TEST_SEED={seed}")
