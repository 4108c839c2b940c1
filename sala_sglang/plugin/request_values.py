"""Values of a request that the scheduler's tensors cannot take.

Both the processes that answer HTTP and the scheduler look at them: what got past the former, through whatever entry
point, must not end the latter.
"""

from collections.abc import Iterable
from typing import Any

import numpy

# SGLang samples from (logit / repetition_penalty + bias) / temperature in float32, at temperatures of 1e-6 and more.
# Within these bounds that is finite. Outside, probabilities are NaN, and a sampler may fail or leave the vocabulary.
LARGEST, SMALLEST_DIVISOR = 1e20, 1e-20
LARGEST_EMBEDDING = 1e12  # the squares of thousands of them, scaled, are added up in float32
LARGEST_INT32 = 2**31 - 1


def check_message(message: Any, vocabulary: int, hidden_size: int) -> None:
    """Raise ValueError that names field, value and what is allowed for a message that cannot be served.

    message: SGLang's TokenizedGenerateReqInput. vocabulary: number of token ids. hidden_size: length of an embedding.
    """
    if message.input_ids:
        ids = numpy.asarray(message.input_ids)
        check_range("input_ids", (int(ids.min()), int(ids.max())), 0, vocabulary - 1)
    _check_prompt(message, hidden_size)
    # Whether this request wants logprobs or not: they are computed for the batch.
    check_range("logprob_start_len", [message.logprob_start_len], -1, LARGEST_INT32)
    check_range("top_logprobs_num", [message.top_logprobs_num], 0, vocabulary)
    _check_sampling(message.sampling_params, vocabulary)


def check_range(name: str, values: Iterable, lowest: float, highest: float) -> None:
    for value in values:
        if not isinstance(value, int | float) or not lowest <= value <= highest:
            raise ValueError(f"{name} = {value!r} is not supported; allowed: {lowest} to {highest}")


def _check_prompt(message: Any, hidden_size: int) -> None:
    from sglang.srt.managers.embed_types import PositionalEmbeds

    tokens = len(message.input_ids or message.input_embeds or ())
    if not tokens and message.session_params is None:
        raise ValueError("The prompt is empty; allowed: at least one token")
    for row in message.input_embeds or ():
        check_range("length of a row of input_embeds", [len(row)], hidden_size, hidden_size)
        check_range("input_embeds", (min(row), max(row)), -LARGEST_EMBEDDING, LARGEST_EMBEDDING)
    if not isinstance(message.positional_embed_overrides, PositionalEmbeds | None):
        raise ValueError("positional_embed_overrides is not supported; allowed: tensors, from within the process")
    for name in ("token_indices_to_pool", "multi_item_delimiter_indices"):
        positions = getattr(message, name)
        if positions == []:
            raise ValueError(f"{name} is empty; allowed: positions in the prompt, or nothing at all")
        check_range(name, positions or (), 0, tokens - 1)


def _check_sampling(parameters: Any, vocabulary: int) -> None:
    check_range("stop_token_ids", parameters.stop_token_ids or (), 0, vocabulary - 1)
    check_range("top_k", [parameters.top_k], 1, LARGEST_INT32)
    check_range("min_new_tokens", [parameters.min_new_tokens], 0, LARGEST_INT32)
    check_range("temperature", [parameters.temperature], 0, LARGEST)
    check_range("repetition_penalty", [parameters.repetition_penalty], SMALLEST_DIVISOR, LARGEST)
    check_range("logit_bias", (parameters.logit_bias or {}).values(), -LARGEST, LARGEST)
