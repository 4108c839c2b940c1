"""Standard arguments of transformers' causal models: what this model follows, and clear refusals of the rest."""

from itertools import accumulate, pairwise
from typing import Any, NoReturn

import torch
from transformers import GenerationConfig

from sala_sglang.config import SALAConfig
from sala_sglang.hf.cache import SALACache

# Arguments without an effect at these values; at any other value the caller would get something else than asked for.
WITHOUT_EFFECT = {
    "head_mask": (None,),
    "is_causal": (None, True),
    "output_attentions": (None, False),
    "output_router_logits": (None, False),
}


def refuse(argument: str, value: Any, allowed: str) -> NoReturn:
    """Raise the ValueError of an argument that cannot be followed."""
    raise ValueError(f"{argument}: got {_shown(value)}; allowed: {allowed}")


def _shown(value: Any) -> Any:
    return f"a tensor of shape {list(value.shape)} and {value.dtype}" if isinstance(value, torch.Tensor) else value


def check_others(arguments: dict[str, Any], config: SALAConfig) -> None:
    """Let arguments through that have no effect. Raises ValueError for other values, TypeError for other names."""
    if arguments.get("output_attentions") is None:
        arguments = arguments | {"output_attentions": config.output_attentions}
    for name, value in arguments.items():
        if name in WITHOUT_EFFECT:
            if not any(value is allowed for allowed in WITHOUT_EFFECT[name]):
                reason = " (there is no attention matrix to return)" if name == "output_attentions" else ""
                refuse(name, value, " or ".join(map(str, WITHOUT_EFFECT[name])) + reason)
        elif value is not None:
            allowed = "the arguments that forward() names"
            raise TypeError(f"{name}: got {_shown(value)}, but MiniCPM-SALA has no such argument; allowed: {allowed}")


def check_cache(cache: Any) -> None:
    """Raises ValueError unless ``cache`` is a SALACache or None."""
    if cache is not None and not isinstance(cache, SALACache):
        refuse("past_key_values", f"a {type(cache).__name__}", "a SALACache (from sala_sglang.hf) or None")


def check_inputs(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, hidden_size: int) -> None:
    """Raises ValueError unless exactly one of the inputs is there, with its shape and at least one column."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    if input_ids is not None and (input_ids.ndim != 2 or not input_ids.shape[1]):
        refuse("input_ids", input_ids, "shape [batch, tokens] with at least one token")
    if inputs_embeds is not None and (inputs_embeds.ndim != 3 or not inputs_embeds.shape[1]):
        refuse("inputs_embeds", inputs_embeds, f"shape [batch, tokens, {hidden_size}] with at least one token")
    if inputs_embeds is not None and inputs_embeds.shape[2] != hidden_size:
        refuse("inputs_embeds", inputs_embeds, f"shape [batch, tokens, {hidden_size}]")


def real_tokens(attention_mask: Any, batch: int, columns: int, cache: SALACache | None = None) -> torch.Tensor | None:
    """Which of the [B, T] inputs are real tokens, bool; None if all are.

    The mask has T columns, or those of the cache before them. Raises ValueError on other shapes, on values other than
    0 and 1, and on another number of tokens before than the cache holds.
    """
    if attention_mask is None:
        return None
    past = 0 if cache is None else cache.columns
    if not isinstance(attention_mask, torch.Tensor):
        refuse("attention_mask", f"a {type(attention_mask).__name__}", f"a tensor of shape {[batch, columns]} or None")
    shape = list(attention_mask.shape)
    if shape not in ([batch, columns], [batch, past + columns]):
        allowed = " or ".join(str([batch, width]) for width in sorted({columns, past + columns}))
        raise ValueError(f"attention_mask: expected shape {allowed}, got {shape}")
    marked = attention_mask.bool()
    if (marked != attention_mask).any():
        refuse("attention_mask", f"values from {attention_mask.min()} to {attention_mask.max()}", "0 and 1")
    if cache is not None and past and shape[1] > columns:
        before = marked[:, :-columns].sum(1).tolist()
        held = [sequence.tokens for sequence in cache.sequences]
        if before != held:
            refuse("attention_mask", f"{before} tokens before this call", f"the {held} tokens of past_key_values")
    keep = marked[:, -columns:]
    return None if keep.all() else keep


def sample_lengths(
    position_ids: torch.Tensor | None, keep: torch.Tensor | None, starts: list[int], rows: list[int]
) -> list[int]:
    """Tokens of every sample in a call with ``rows`` real tokens per sequence after ``starts`` tokens each.

    Positions that count on give ``rows``. Positions that start again at 0 (several samples packed into a row) give the
    samples. position_ids: [T], [1, T] or [B, T] integers. Raises ValueError for other positions.
    """
    if position_ids is None:
        return rows
    columns = rows[0] if keep is None else keep.shape[1]
    batch = len(rows)
    if list(position_ids.shape) not in ([columns], [1, columns], [batch, columns]) or position_ids.is_floating_point():
        refuse("position_ids", position_ids, f"integers of shape [{batch}, {columns}], [1, {columns}] or [{columns}]")
    every = position_ids.expand(batch, columns)
    given = (every.flatten() if keep is None else every[keep.to(every.device)]).cpu()
    if torch.equal(given, count_positions(starts, rows)):
        return rows
    begins = [0, *(given[1:] != given[:-1] + 1).nonzero().flatten().add(1).tolist(), len(given)]
    lengths = [end - begin for begin, end in pairwise(begins)]
    row_begins = set(accumulate(rows, initial=0))
    if any(starts) or given[begins[:-1]].any() or not row_begins <= set(begins):
        allowed = f"positions that count up from {starts}, the tokens of past_key_values"
        if not any(starts):
            allowed += ", or start again at 0 where a packed sample begins"
        refuse("position_ids", given.tolist() if len(given) < 9 else f"{given[:8].tolist()} and so on", allowed)
    return lengths


def count_positions(starts: list[int], rows: list[int]) -> torch.Tensor:
    """Positions [N] of ``rows`` tokens after ``starts`` tokens each, one sequence after the other."""
    return torch.cat([torch.arange(s, s + n) for s, n in zip(starts, rows, strict=True)])


def check_packing(lengths: list[int], arguments: dict[str, Any]) -> dict[str, Any]:
    """Take out of ``arguments`` what packing collators send beside position_ids; returns the others.

    Raises ValueError where cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k or seq_idx describe other samples
    than ``lengths``.
    """
    bounds = list(accumulate(lengths, initial=0))
    expected: dict[str, Any] = dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), bounds)
    expected |= dict.fromkeys(("max_length_q", "max_length_k"), max(lengths))
    expected["seq_idx"] = [index for index, length in enumerate(lengths) for _ in range(length)]
    for name, value in expected.items():
        given = arguments.get(name)
        if isinstance(given, torch.Tensor):
            given = given.flatten().tolist() if given.ndim else given.item()
        if given is not None and given != value:
            refuse(name, given, f"that of the samples in position_ids, of {lengths} tokens")
    return {name: value for name, value in arguments.items() if name not in expected}


def check_cache_position(cache_position: torch.Tensor | None, cache: SALACache | None, columns: int) -> None:
    """Raises ValueError unless ``cache_position`` [T] counts the columns after the cached ones, or is None."""
    past = 0 if cache is None else cache.columns
    if cache_position is not None and cache_position.flatten().tolist() != list(range(past, past + columns)):
        refuse("cache_position", cache_position.flatten().tolist()[:8], f"{past} to {past + columns - 1}, or None")


def check_loss(
    labels: torch.Tensor | None,
    shift_labels: torch.Tensor | None,
    inputs: torch.Tensor | None,
    logits_to_keep: int | torch.Tensor,
) -> None:
    """Raises ValueError unless labels have the shape [B, T] of the inputs and logits for all of them are kept."""
    if isinstance(logits_to_keep, int) and logits_to_keep < 0:
        refuse("logits_to_keep", logits_to_keep, "0 for all positions, a positive number or a tensor of positions")
    for name, given in (("labels", labels), ("shift_labels", shift_labels)):
        if given is None:
            continue
        if inputs is not None and given.shape != inputs.shape[:2]:
            refuse(name, given, f"shape {list(inputs.shape[:2])}, that of the inputs")
        if not isinstance(logits_to_keep, int) or logits_to_keep:
            refuse("logits_to_keep", logits_to_keep, f"0 together with {name}")


def check_generation(generation_config: GenerationConfig, model_kwargs: dict[str, Any]) -> None:
    """Raises ValueError for arguments of ``generate`` that would be ignored or give wrong tokens."""
    check_cache(model_kwargs.get("past_key_values"))
    if generation_config.cache_implementation not in (None, "dynamic"):
        refuse("cache_implementation", repr(generation_config.cache_implementation), "None or 'dynamic'")
    for name in ("cache_config", "max_cache_len"):
        if getattr(generation_config, name, None) is not None:
            refuse(name, getattr(generation_config, name), "None: the cache grows with its tokens, unquantised")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and generation_config.use_cache is False:
        refuse("use_cache", False, "True or None with past_key_values")
    if generation_config.prefill_chunk_size is not None:
        chunks = "None here: transformers would cut input_ids, and all of them, into chunks"
        if model_kwargs.get("inputs_embeds") is not None or (cache is not None and cache.columns):
            refuse("prefill_chunk_size", generation_config.prefill_chunk_size, chunks)
    if model_kwargs.get("labels") is not None:
        refuse("labels", model_kwargs["labels"], "None: generate() computes no loss")
    if generation_config.is_assistant:
        raise ValueError("assistant_model: a MiniCPM-SALA cannot take back what it proposed")
    mask = model_kwargs.get("attention_mask")
    if mask is not None and not mask[:, -1].all():
        refuse("attention_mask", "padding on the right", "padding on the left (padding_side='left')")


def next_labels(
    labels: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    ignore_index: int,
) -> torch.Tensor:
    """Labels [B, T] of the token after each: ``ignore_index`` after padding and where the next sample begins."""
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=ignore_index)
    real = torch.ones_like(labels) if attention_mask is None else attention_mask[:, -labels.shape[1] :]
    real = real.to(labels.device).bool()
    unpredicted = ~real
    if position_ids is not None:
        begins = real & (position_ids.expand_as(labels).to(labels.device) == 0)
        unpredicted[:, :-1] |= begins[:, 1:]
    return following.masked_fill(unpredicted, ignore_index)
