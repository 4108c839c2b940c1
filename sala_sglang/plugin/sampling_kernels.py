"""FlashInfer's sampling is compiled while a server starts, not while its first request with a temperature waits."""

import logging
import threading
import time

import torch
from sala_kernels import targets

from sala_sglang.ahead import sampling
from sala_sglang.plugin import cpu

logger = logging.getLogger(__name__)

FLASHINFER = "flashinfer"  # as --sampling-backend names it
QUICK_SECONDS = 20  # enough to find that everything is there


def compile_while_loading() -> None:
    """Begin with it in one process of each machine, where this server samples by FlashInfer; returns at once."""
    from sglang.srt.runtime_context import get_exec, get_parallel

    if cpu.without_cuda() or get_exec().kernel.sampling_backend != FLASHINFER:
        return
    if get_parallel().world_group.local_rank == 0:
        capability = targets.capability(torch.device("cuda"))
        assert capability
        threading.Thread(target=compile_and_report, args=(capability,), daemon=True).start()


def compile_and_report(capability: targets.Capability) -> None:
    """Compile for a GPU of ``capability`` and say in the log how that went."""
    began = time.perf_counter()
    wrong = sampling.problem(sampling.start_compiling(capability))
    seconds = time.perf_counter() - began
    if wrong:
        logger.warning(
            "FlashInfer's sampling cannot be compiled, and requests with a temperature will fail: %s. Start with "
            "--sampling-backend pytorch",
            wrong,
        )
    elif seconds > QUICK_SECONDS:
        logger.info("FlashInfer's sampling is compiled, after %.0f s", seconds)
