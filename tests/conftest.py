"""What all tests share: one thread per process, and a checkpoint."""

import os
from pathlib import Path

import pytest

# The tensors are tiny: threads that wait for each other cost more than they bring. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def trained_checkpoint() -> Path:
    """Directory of sala-tiny, the trained checkpoint; read only."""
    return Path(__file__).parents[1] / "checkpoints" / "sala-tiny"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """Directory of a tiny checkpoint with random weights; read only."""
    from sala_sglang.checkpoint import make_checkpoint  # here, because most tests need no model

    out = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_checkpoint("tiny", out)
    return out
