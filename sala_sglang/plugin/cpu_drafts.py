"""Drafts of a model on a machine without CUDA: SGLang has kernels for them, or its own CPU engine, and no others.

The names of the arguments are SGLang's. Drafts are chains: every request has one row per step of the draft model.
"""

from collections.abc import Callable
from typing import Any

import torch


def provide_drafts() -> None:
    """Put these functions in the places of SGLang's."""
    from sglang.kernels.ops.speculative import cache_locs
    from sglang.srt.layers.rotary_embedding import base
    from sglang.srt.speculative import eagle_utils, eagle_worker_common, eagle_worker_v2

    base._is_cpu = True  # else rotations are looked for in vLLM
    eagle_worker_common._is_cpu = True  # else a step's slots are planned as for several pools
    eagle_worker_v2._is_cpu = True  # else CUDA graphs are captured
    cache_locs.assign_extend_cache_locs_func = slots_of_rows
    eagle_utils.build_tree_kernel_efficient_func = link_chains
    eagle_worker_common.assign_draft_cache_locs_contiguous_func = slots_of_steps
    eagle_worker_common.fill_bonus_tokens_func = last_accepted
    eagle_worker_v2.select_top_k_tokens = likeliest_token


def slots_of_rows(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    batch_size: int,
    draft_token_num: int,
    device: Any,
) -> torch.Tensor:
    """Slots [B · D] int64 of the tokens from ``start_offset`` [B] on, D = ``draft_token_num`` of each request."""
    tokens = start_offset[:, None] + torch.arange(draft_token_num)
    return req_to_token[req_pool_indices[:, None], tokens].flatten().to(torch.int64)


def slots_of_steps(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    topk: int,
    num_cols: int,
    positions: torch.Tensor | None = None,
    mrope: torch.Tensor | None = None,
) -> None:
    """Write the slots of the ``num_cols`` tokens behind each request's ``seq_lens`` to ``out_cache_loc``."""
    ends = seq_lens + num_cols
    found = slots_of_rows(req_pool_indices, req_to_token, seq_lens, ends, len(seq_lens), num_cols, None)
    out_cache_loc.copy_(found)


def link_chains(
    parent_list: torch.Tensor,
    top_scores_index: torch.Tensor,
    seq_lens: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    topk: int,
    spec_steps: int,
    num_verify_tokens: int,
    tree_mask_mode: Any,
) -> None:
    """Positions of all rows, and the row that follows each; no row has siblings, and no backend reads the mask."""
    from sala_sglang.speculation.worker import chain_links

    requests = len(seq_lens)
    positions.copy_((seq_lens[:, None] + torch.arange(num_verify_tokens)).flatten())
    retrieve_index.copy_(torch.arange(requests * num_verify_tokens).view(requests, num_verify_tokens))
    retrieve_next_token.copy_(chain_links(requests, num_verify_tokens, "cpu"))


def last_accepted(
    accept_tokens: torch.Tensor,
    accept_lens: torch.Tensor,
    bonus_tokens: torch.Tensor,
    accept_stride: int,
    batch_size: int,
) -> None:
    """Write the last of each request's ``accept_lens`` accepted tokens, which are ``accept_stride`` apart."""
    rows = accept_tokens.view(batch_size, accept_stride)
    bonus_tokens.copy_(rows.gather(1, accept_lens[:, None].long() - 1)[:, 0])


def likeliest_token(
    i: int,
    topk_p: torch.Tensor,
    topk_index: torch.Tensor,
    hidden_states: torch.Tensor | None,
    scores: torch.Tensor | None,
    topk: int,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Input of the draft model's next step, its scores, and what SGLang keeps of a tree: of a chain the tokens alone.

    topk_p, topk_index: [B, 1], of the step before. SGLang compiles this for every machine.
    """
    return topk_index.flatten(), hidden_states, topk_p, (topk_p, topk_index, topk_index)


def steps_backend(original: Callable, factory: Any) -> Any:
    """The attention of a draft model's steps: one backend for each, in torch."""
    if factory.speculative_num_steps <= 1:
        return None
    from sala_sglang.speculation.torch_steps import TorchSteps

    return TorchSteps(factory.draft_model_runner, factory.speculative_num_steps)


def extend_backend(original: Callable, factory: Any) -> None:
    """None: the draft model keeps the backend of its prefill, which serves accepted rows too."""


def no_copies(original: Callable, pool: Any) -> None:
    """Keys and values of a draft model never move: its drafts are chains. SGLang would compile a kernel that does."""


_FACTORY = "sglang.srt.speculative.draft_utils.DraftBackendFactory"
# SGLang's functions and what runs around them.
HOOKS: dict[str, Callable] = {
    f"{_FACTORY}.create_decode_backend": steps_backend,
    f"{_FACTORY}.create_draft_extend_backend": extend_backend,
    "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool._init_kv_copy_and_warmup": no_copies,
}
