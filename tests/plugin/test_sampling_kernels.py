"""When a server compiles FlashInfer's sampling beside its start."""

import threading
from types import SimpleNamespace

import pytest
from sala_kernels import targets
from sglang.srt import runtime_context

from sala_sglang.plugin import cpu, sampling_kernels


@pytest.mark.parametrize(
    ("without_cuda", "backend", "rank", "compiles"),
    [
        (False, "flashinfer", 0, True),
        (False, "flashinfer", 1, False),  # the first rank of a machine does it for all
        (False, "pytorch", 0, False),
        (True, "flashinfer", 0, False),
    ],
)
def test_one_process_of_a_machine_that_samples_by_flashinfer(monkeypatch, without_cuda, backend, rank, compiles):
    compiled = []
    ended = threading.Event()

    def compile_and_report(capability: targets.Capability) -> None:
        compiled.append(capability)
        ended.set()

    kernel, group = SimpleNamespace(sampling_backend=backend), SimpleNamespace(local_rank=rank)
    monkeypatch.setattr(cpu, "without_cuda", lambda: without_cuda)
    monkeypatch.setattr(runtime_context, "get_exec", lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.setattr(runtime_context, "get_parallel", lambda: SimpleNamespace(world_group=group))
    monkeypatch.setattr(targets, "capability", lambda device: targets.HOPPER)
    monkeypatch.setattr(sampling_kernels, "compile_and_report", compile_and_report)
    sampling_kernels.compile_while_loading()
    assert ended.wait(60 if compiles else 0) == compiles
    assert compiled == [targets.HOPPER] * compiles
