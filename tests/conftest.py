"""What all tests share: one thread per process, kernels in Triton's interpreter without a GPU, a fork server and
checkpoints."""

import os
import sys
from pathlib import Path

import pytest

# The tensors are tiny: threads that wait for each other cost more than they bring. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from testing.fork_server import ForkServer
from testing.server import Server, server_environment

TRAINED_ARGUMENTS = ("--dtype", "float32", "--max-running-requests", "4")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined


def pytest_configure(config):
    """One fork server for all processes of pytest-xdist; CUDA does not live on in forks."""
    if not hasattr(config, "workerinput") and not torch.cuda.is_available():
        # Tensor parallelism compiles SGLang's embedding with a C++ compiler, which a test machine need not have; torch
        # reads the variable while it is imported.
        server = ForkServer(server_environment({"TORCH_COMPILE_DISABLE": "1"}))
        server.__enter__()
        config.add_cleanup(lambda: server.__exit__())


def pytest_collection_modifyitems(items):
    """Groups for pytest-xdist, which keeps a group in one process: tests of a server, and of a file without servers.

    Files that start servers or ranks come first, so that short ones are left to even out the ends.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/serving/", "tests/examples/", "tests/parallel/")))
    shared = {item.path for item in items if "trained_server" in item.fixturenames}
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        of_servers = [str(parameters[name]) for name in ("server_name", "server") if name in parameters]
        group = "trained server" if item.path in shared else " ".join([item.location[0], *of_servers])
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module", autouse=True)
def own_configuration():
    """This project in the registries of transformers: importing SGLang takes the model's type for its own classes."""
    if "sglang" in sys.modules:
        from sala_sglang import hf

        hf.register()


@pytest.fixture(scope="session")
def trained_checkpoint() -> Path:
    """Directory of sala-tiny, the trained checkpoint; read only."""
    return Path(__file__).parents[1] / "checkpoints" / "sala-tiny"


@pytest.fixture(scope="session")
def trained_server(trained_checkpoint):
    """A running server on sala-tiny."""
    with Server(trained_checkpoint, *TRAINED_ARGUMENTS) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """Directory of a tiny checkpoint with random weights; read only."""
    from sala_sglang.checkpoint.make import make_checkpoint  # here, because most tests need no model

    out = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_checkpoint("tiny", out)
    return out
