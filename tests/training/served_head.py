"""SGLang's own module of an EAGLE3 head on a CPU, with plain attention in place of its backends."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from sglang.srt.layers.rotary_embedding import base
from sglang.srt.models.llama_eagle3 import LlamaForCausalLMEagle3
from sglang.srt.runtime_context import get_context, get_parallel
from torch import nn
from transformers import LlamaConfig

ONE_RANK = {"tp_size": 1, "tp_rank": 0, "attn_tp_size": 1, "attn_tp_rank": 0, "tp_group": None, "pp_group": None}
NOT_EXTENDING = SimpleNamespace(is_extend=lambda: False)


@contextmanager
def one_rank() -> Iterator[None]:
    """SGLang's settings of a process without groups."""
    with get_context().override_server_args(device="cpu"), get_parallel().override(**ONE_RANK):
        yield


class CachedAttention(nn.Module):
    """Attention of one sequence: each call's rows see those of the calls before, and of their own up to themselves."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: object) -> torch.Tensor:
        self.keys.append(k.unflatten(-1, (-1, self.head_dim)))
        self.values.append(v.unflatten(-1, (-1, self.head_dim)))
        keys, values = torch.cat(self.keys), torch.cat(self.values)
        queries = q.unflatten(-1, (-1, self.head_dim))
        copies = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(copies, 1), values.repeat_interleave(copies, 1)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * self.head_dim**-0.5
        before = len(keys) - len(q)
        hidden = torch.ones(len(q), len(keys), dtype=torch.bool).triu(before + 1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values).flatten(1)


class ServedHead:
    """What SGLang loads from ``path``, in float32; embedding: the target's table [vocabulary, hidden]."""

    def __init__(self, path: Path, embedding: torch.Tensor):
        config = LlamaConfig(**json.loads((path / "config.json").read_text()))
        with pytest.MonkeyPatch.context() as patch, one_rank():
            patch.setattr(base, "_is_cpu", True)  # elsewhere its constructor wants a library of GPUs
            self.module = LlamaForCausalLMEagle3(config).float()
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.fill_(torch.nan)  # what the file lacks shows
        self.module.load_weights(load_file(path / "model.safetensors").items())
        self.embedding = embedding
        attention = self.module.model.layers[0].self_attn
        attention.attn = CachedAttention(attention.head_dim)
        attention.rotary_emb.forward = attention.rotary_emb.forward_native

    @torch.no_grad()
    def step(self, ids: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits [T, draft vocabulary] and what the next step is given [T, hidden]; hidden: captured states or that."""
        batch = SimpleNamespace(
            mm_input_embeds=None, forward_mode=NOT_EXTENDING, spec_info=SimpleNamespace(hidden_states=hidden)
        )
        with one_rank():
            normed, (fed_back,) = self.module.model(ids, positions, batch, input_embeds=self.embedding[ids])
        rows = self.module.config.draft_vocab_size  # SGLang pads the table, and cuts the logits
        return nn.functional.linear(normed, self.module.lm_head.weight)[:, :rows], fed_back
