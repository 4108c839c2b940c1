"""Which of SGLang's kernels computes products with bfloat16 weights."""

from pathlib import Path
from typing import Any

import torch

HOPPER = 9


def backend_for_one_row(server_args: Any) -> dict[str, str]:
    """The ``bf16_gemm_backend`` to declare where the user named none; empty to leave SGLang's choice.

    A decode step of one request reads every weight for a single row. On Hopper SGLang's ``gemv`` does so faster than
    cuBLAS, which it leaves to all other steps (docs/benchmarks.md). SGLang compiles it for the first such step, that of
    the graph captured at the start, so it needs a CUDA compiler; and its sums have another order, which deterministic
    inference does not allow.
    """
    from sglang.srt.arg_groups.overrides import resolution_result

    value = {name: resolution_result(server_args, name) for name in ("bf16_gemm_backend", "device")}
    # With a policy to train SGLang makes inference deterministic, after this has been asked.
    deterministic = resolution_result(server_args, "enable_deterministic_inference")
    deterministic = deterministic or resolution_result(server_args, "rl_on_policy_target") is not None
    if value != {"bf16_gemm_backend": "auto", "device": "cuda"} or deterministic:
        return {}
    if torch.cuda.get_device_capability()[0] != HOPPER or not _has_compiler():
        return {}
    return {"bf16_gemm_backend": "gemv"}


def _has_compiler() -> bool:
    from torch.utils.cpp_extension import CUDA_HOME

    return CUDA_HOME is not None and Path(CUDA_HOME, "bin", "nvcc").is_file()
