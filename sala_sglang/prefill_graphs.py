"""Up to which size SGLang captures prefill steps as CUDA graphs."""

from typing import Any

# Longer steps hide their launches behind their kernels: at 8,192 tokens the GPU is idle for 1 % of a step; that 512 are
# enough is an estimate. And a captured step computes the last layer for all of its rows, where others do so for those
# whose logits are read (models/last_rows.py).
MAX_TOKENS = 512


def default_size(server_args: Any) -> dict[str, int]:
    """The ``cuda_graph_max_bs_prefill`` to declare where the user named no sizes; else empty. SGLang: whole chunks."""
    from sglang.srt.arg_groups.overrides import resolution_result

    sizes = "cuda_graph_max_bs_prefill", "cuda_graph_bs_prefill", "cuda_graph_config"
    named = any(resolution_result(server_args, name) for name in sizes)
    return {} if named else {"cuda_graph_max_bs_prefill": MAX_TOKENS}
