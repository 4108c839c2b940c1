"""Verification of drafts on a machine without CUDA: SGLang has kernels for it, or its own CPU engine, and no others.

The names of the arguments are SGLang's. Drafts are chains, so that row i + 1 of a request follows row i.
"""

from typing import Any

import torch


def provide_verification() -> None:
    """Put these functions in the places of SGLang's."""
    from sglang.srt.mem_cache import allocation
    from sglang.srt.speculative import eagle_utils

    allocation.assign_req_to_token_pool_func = assign_slots
    allocation.get_last_loc = allocation.get_last_loc_torch
    eagle_utils.verify_tree_greedy_func = accept_greedily
    eagle_utils.tree_speculative_sampling_target_only = accept_by_chance
    eagle_utils.top_k_renorm_prob = keep_top_k
    eagle_utils.top_p_renorm_prob = keep_top_p


def assign_slots(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    batch_size: int,
) -> None:
    """Write the slots ``out_cache_loc`` of all requests, one after the other, to tokens start … end − 1 of each."""
    begin = 0
    for row, start, end in zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True):
        req_to_token[row, start:end] = out_cache_loc[begin : begin + end - start].to(req_to_token.dtype)
        begin += end - start


def accept_greedily(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    target_predict: torch.Tensor,
    **links: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Accept drafts as long as each is the token that the row before it predicts.

    candidates, target_predict [B, D]: rows of the step, and the likeliest token after each. Written: predicts [B·D],
    accept_index [B, D] with −1 behind the accepted rows, accept_token_num [B], the drafts among these.
    """
    requests, rows = candidates.shape
    right = candidates[:, 1:] == target_predict[:, :-1]
    accept_token_num.copy_(right.long().cumprod(1).sum(1))
    kept = torch.arange(rows) <= accept_token_num[:, None]
    accept_index.copy_(torch.where(kept, torch.arange(requests * rows).view(requests, rows), -1))
    predicts.copy_(target_predict.flatten())
    return predicts, accept_index, accept_token_num


def accept_by_chance(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    uniform_samples: torch.Tensor,
    uniform_samples_for_final_sampling: torch.Tensor,
    target_probs: torch.Tensor,
    **others: Any,
) -> None:
    """Accept each draft with its probability; where one is not, sample one of the other tokens in its place.

    So every token has the distribution that ``target_probs`` [B, D, vocabulary] gives it, whatever the drafts are. The
    rest as in accept_greedily.
    """
    accept_index.fill_(-1)
    rows = candidates.shape[1]
    for request, drafts in enumerate(candidates.tolist()):
        row = 0
        while True:
            accept_index[request, row] = request * rows + row
            left = target_probs[request, row].clone()
            if row + 1 < rows:
                draft = drafts[row + 1]
                if uniform_samples[request, row] < left[draft]:
                    predicts[request * rows + row] = draft
                    row += 1
                    continue
                left[draft] = 0
            reached = left.cumsum(0)
            drawn = torch.searchsorted(reached, uniform_samples_for_final_sampling[request] * reached[-1], right=True)
            predicts[request * rows + row] = drawn.clamp(max=int(left.nonzero()[-1]))
            accept_token_num[request] = row
            break


def keep_top_k(probs: torch.Tensor, top_ks: torch.Tensor) -> torch.Tensor:
    """Probabilities [T, vocabulary] of the ``top_ks`` [T] likeliest tokens of each row, scaled up to 1."""
    ordered = probs.sort(-1, descending=True).values
    least = ordered.gather(1, (top_ks.long().clamp(max=probs.shape[1]) - 1)[:, None])
    kept = torch.where(probs >= least, probs, 0)
    return kept / kept.sum(-1, keepdim=True)


def keep_top_p(probs: torch.Tensor, top_ps: torch.Tensor) -> torch.Tensor:
    """Probabilities [T, vocabulary] of the fewest likeliest tokens that reach ``top_ps`` [T], scaled up to 1."""
    ordered, tokens = probs.sort(-1, descending=True)
    ordered[ordered.cumsum(-1) - ordered > top_ps[:, None]] = 0
    kept = torch.zeros_like(probs).scatter_(-1, tokens, ordered)
    return kept / kept.sum(-1, keepdim=True)
