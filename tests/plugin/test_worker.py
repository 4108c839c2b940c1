"""What a worker checks before it builds the model."""

import multiprocessing
import os
from types import SimpleNamespace

import pytest
import sglang.srt.runtime_context
import torch
from sala_kernels import targets

from sala_sglang import __version__
from sala_sglang.environment import shared
from sala_sglang.plugin import worker
from testing.server import ANSWER_SECONDS

RANKS = 2


@pytest.mark.parametrize("backend, refused", [("sala", False), ("minicpm_flashinfer", True), ("triton", True)])
def test_arguments_that_were_resolved_without_the_plugin(monkeypatch, backend, refused):
    execution = SimpleNamespace(kernel=SimpleNamespace(attention_backend=backend))
    monkeypatch.setattr(sglang.srt.runtime_context, "get_exec", lambda: execution)
    if not refused:
        return worker.check_resolution()
    with pytest.raises(RuntimeError, match=f"the attention backend is '{backend}', expected 'sala'.*plugins"):
        worker.check_resolution()


def agree(rank: int, folder: str, environment: dict[str, str], said: multiprocessing.Queue) -> None:
    os.environ.update(environment)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS)
    group = SimpleNamespace(world_size=RANKS, cpu_group=torch.distributed.group.WORLD)
    sglang.srt.runtime_context.get_parallel = lambda: SimpleNamespace(world_group=group)
    try:
        worker.agree_on_options()
        said.put((rank, shared()))
    except ValueError as error:
        said.put((rank, str(error)))


def on_two_ranks(folder, *environments: dict[str, str]) -> list:
    """The options of each rank after they have agreed, or the message of its error."""
    fork = multiprocessing.get_context("fork")
    said = fork.Queue()
    ranks = [fork.Process(target=agree, args=(i, str(folder), environments[i], said)) for i in range(RANKS)]
    for process in ranks:
        process.start()
    messages = dict(said.get(timeout=ANSWER_SECONDS) for _ in ranks)
    for process in ranks:
        process.join()
    return [messages[rank] for rank in range(RANKS)]


@pytest.mark.parametrize(
    "name, values",
    [
        ("SGLANG_MINICPM_DENSE_AS_SPARSE", ("0", "1")),
        ("SALA_SNAPSHOT_SPACING", ("128", "64")),
        ("SALA_PATHS", ("early_launch=off", "early_launch=on")),
    ],
)
def test_ranks_that_contradict_each_other_stop_all(tmp_path, name, values):
    for message in on_two_ranks(tmp_path, *({name: value} for value in values)):
        assert message.startswith(f"{name} differs between ranks: ") and "allowed: the same on every node" in message


def test_what_one_rank_was_told_holds_on_all(tmp_path):
    told = {"SGLANG_MINICPM_DENSE_AS_SPARSE": "1"}, {"SALA_SNAPSHOT_SPACING": "64"}
    agreed = {
        "SGLANG_MINICPM_DENSE_AS_SPARSE": "True",
        "SGLANG_MINICPM_FORCE_DENSE": None,
        "SALA_SNAPSHOT_SPACING": "64",
    }
    for options in on_two_ranks(tmp_path, *told):
        expected = {"sala-sglang": __version__} | agreed
        assert {name: options[name] for name in expected} == expected


def test_ranks_that_agree_go_on(tmp_path):
    first, second = on_two_ranks(tmp_path, {"SGLANG_MINICPM_FORCE_DENSE": "1"}, {"SGLANG_MINICPM_FORCE_DENSE": "on"})
    assert first == second and first["SGLANG_MINICPM_FORCE_DENSE"] == "True"


def test_forced_paths(monkeypatch):
    monkeypatch.setattr(targets, "_forced", {})
    monkeypatch.setattr(worker.cpu, "without_cuda", lambda: True)
    worker.force_paths()
    monkeypatch.setenv("SALA_PATHS", "shared_blocks=off,early_launch=off")
    worker.force_paths()
    assert targets._forced == {"shared_blocks": False, "early_launch": False}
    monkeypatch.setenv("SALA_PATHS", "early_launch=on")
    with pytest.raises(ValueError, match=r"path 'early_launch' needs .*; this is no NVIDIA GPU"):
        worker.force_paths()


@pytest.mark.parametrize("given", ["tma=on", "early_launch", "early_launch=1"])
def test_paths_that_do_not_exist(monkeypatch, given):
    monkeypatch.setenv("SALA_PATHS", given)
    with pytest.raises(ValueError, match=f"SALA_PATHS = '{given}' is not possible; .* shared_blocks, early_launch, "):
        worker.force_paths()
