"""Which rows of a prefill step the last layer has to compute.

Of all rows of a prompt SGLang reads the logits of one, the last. Every layer but the last one needs all rows, for the
keys, values and states of the next. In the last layer only these themselves do: queries, the attention to them, output
projection and MLP are computed for the rows whose logits are read, and for no other.
"""

from dataclasses import replace

import torch
from sglang.srt.layers.logits_processor import LogitsMetadata
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.runner_utils.prefill_graph import is_in_prefill_graph_scope


def last_rows(batch: ForwardBatch, width: int) -> tuple[torch.Tensor | None, LogitsMetadata | ForwardBatch]:
    """Rows [B] int64, the last of every request, and what tells SGLang's logits processor that no others are there.

    None and the batch as it is where other rows may be read: log-probabilities of the prompt, hidden states, several
    tokens to verify, scores of items within a prompt. The same in captured graphs of prefill, whose number of rows is
    fixed, and where rows are padded. width: T, the rows of the step.
    """
    if _may_need_all(batch, width):
        return None, batch
    metadata = LogitsMetadata.from_forward_batch(batch)
    if metadata.extend_return_logprob:
        return None, batch
    rows = batch.extend_seq_lens.cumsum(0) - 1
    return rows, replace(metadata, extend_seq_lens=torch.ones_like(batch.extend_seq_lens))


def _may_need_all(batch: ForwardBatch, width: int) -> bool:
    return (
        batch.forward_mode not in (ForwardMode.EXTEND, ForwardMode.MIXED)
        or batch._original_forward_mode is not None  # an idle rank that pretends to have rows
        or batch.capture_hidden_mode.need_capture()
        or batch.multi_item_delimiter_indices is not None
        or batch.token_indices_to_pool is not None
        or sum(batch.extend_seq_lens_cpu) != width
        or is_in_prefill_graph_scope()
        or torch.compiler.is_compiling()
    )
