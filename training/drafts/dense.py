"""A small dense model with the target's vocabulary, for ``--speculative-algorithm STANDALONE``."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from training.drafts.target import SHARED_FIELDS, Target


class DenseDraft(nn.Module):
    """A Llama that drafts from the text alone. tokenizer: directory of the target's, which SGLang compares."""

    token_ids: torch.Tensor

    def __init__(self, model: LlamaForCausalLM, tokenizer: Path):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.register_buffer("token_ids", torch.arange(model.config.vocab_size), persistent=False)

    @classmethod
    def begin(cls, target: Target, layers: int, max_tokens: int) -> "DenseDraft":
        """An untrained one with the target's widths, and its embedding and output weights in one table."""
        sizes = {name: getattr(target.config, name) for name in SHARED_FIELDS}
        config = LlamaConfig(
            **sizes, num_hidden_layers=layers, max_position_embeddings=max_tokens, tie_word_embeddings=True
        )
        return cls(LlamaForCausalLM(config), Path(target.model.name_or_path))

    def unroll(
        self, ids: torch.Tensor, states: torch.Tensor, embeds: torch.Tensor, bases: torch.Tensor, steps: int
    ) -> Iterator[torch.Tensor]:
        """As of an EAGLE3 head. Given the same tokens, a step predicts what a later base's earlier step does."""
        hidden = self.model.model(ids[None], use_cache=False).last_hidden_state[0]
        for step in range(steps):
            yield self.model.lm_head(hidden[(bases + 1 + step).clamp(max=len(ids) - 1)])

    def save(self, out: Path) -> None:
        """Write the checkpoint in bfloat16, with the tokenizer."""
        AutoTokenizer.from_pretrained(self.tokenizer).save_pretrained(out)
        deepcopy(self.model).to(torch.bfloat16).save_pretrained(out)

    @classmethod
    def load(cls, path: Path) -> "DenseDraft":
        """The draft that ``save`` has written, in float32."""
        return cls(LlamaForCausalLM.from_pretrained(path, dtype=torch.float32), path)
