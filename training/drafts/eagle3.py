"""An EAGLE3 head (Li et al. 2025, arXiv 2503.01840) as SGLang's ``LlamaForCausalLMEagle3`` computes it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from sala_sglang.hf import SALAConfig
from training.drafts.target import SHARED_FIELDS, Target, captured_layers

# Long waves: what a head looks up lies anywhere in the context, not near by.
ROPE_THETA = 1e7


def head_config(target: SALAConfig, draft_vocabulary: int, max_tokens: int) -> dict[str, Any]:
    """``config.json`` of a head: heads and widths of the target, three captured states with a norm each."""
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        **{name: getattr(target, name) for name in SHARED_FIELDS},
        "num_hidden_layers": 1,
        "draft_vocab_size": draft_vocabulary,
        "max_position_embeddings": max_tokens,
        "rope_theta": ROPE_THETA,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "fc_norm": True,
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": captured_layers(target),
        },
    }


class Attention(nn.Module):
    """Of queries and keys that are made from a token's embedding and a hidden state together."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(2 * config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(2 * config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(2 * config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.rotary = LlamaRotaryEmbedding(config)

    def heads(self, projection: nn.Linear, x: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """[T, 2 · hidden] -> [H, T, D], rotated by ``positions`` [T]."""
        states = projection(x).unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
        if positions is None:
            return states
        cos, sin = self.rotary(x.float(), positions[None])
        return apply_rotary_pos_emb(states, states, cos[0], sin[0], unsqueeze_dim=0)[0].to(states.dtype)

    def attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        """queries: [H, N, D]; keys, values: [Hkv, S, D]; visible: [N, S]. Returns [N, hidden]."""
        copies = len(queries) // len(keys)
        keys, values = (x.repeat_interleave(copies, dim=0)[None] for x in (keys, values))
        attended = nn.functional.scaled_dot_product_attention(queries[None], keys, values, attn_mask=visible)[0]
        return self.o_proj(attended.transpose(0, 1).flatten(1))


class MidLayer(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.mlp = LlamaMLP(config)

    def join(self, embeds: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.input_layernorm(embeds), self.hidden_norm(hidden)), dim=-1)


class Eagle3Head(nn.Module):
    """The head's tensors, under the names of published heads, and the unrolled steps that it is trained by.

    token_ids: [draft vocabulary] int64, the target's token of each logit.
    """

    token_ids: torch.Tensor

    def __init__(self, config: dict[str, Any], token_ids: torch.Tensor):
        super().__init__()
        self.config = config
        llama = LlamaConfig(**config)
        size, eps = llama.hidden_size, llama.rms_norm_eps
        self.fc_norm = nn.ModuleList(LlamaRMSNorm(size, eps) for _ in range(3))
        self.fc = nn.Linear(3 * size, size, bias=False)
        self.midlayer = MidLayer(llama)
        self.norm = LlamaRMSNorm(size, eps)
        self.lm_head = nn.Linear(size, len(token_ids), bias=False)
        self.register_buffer("token_ids", token_ids, persistent=False)

    @classmethod
    def begin(cls, target: Target, token_ids: torch.Tensor, max_tokens: int) -> "Eagle3Head":
        """An untrained head, whose residual stream starts as the highest captured state, and which reads it as the
        target reads its last hidden states."""
        head = cls(head_config(target.config, len(token_ids), max_tokens), token_ids)
        model, size = target.model, target.config.hidden_size
        with torch.no_grad():
            head.fc.weight.mul_(0.1)
            head.fc.weight[:, 2 * size :] += torch.eye(size)
            head.lm_head.weight.copy_(model.lm_head.weight[token_ids.to(model.device)])
            head.norm.weight.copy_(model.model.norm.weight / target.config.logit_divisor)
        return head

    def fuse(self, states: torch.Tensor) -> torch.Tensor:
        """Captured states [T, 3 · hidden] -> [T, hidden]."""
        chunks = [norm(chunk) for norm, chunk in zip(self.fc_norm, states.chunk(3, dim=-1), strict=True)]
        return self.fc(torch.cat(chunks, dim=-1))

    def unroll(
        self, ids: torch.Tensor, states: torch.Tensor, embeds: torch.Tensor, bases: torch.Tensor, steps: int
    ) -> Iterator[torch.Tensor]:
        """Logits [N, draft vocabulary] of each of ``steps`` draft steps from N positions at once.

        ids: [T], which a head does not read. states: [T, 3 · hidden]. embeds: [T, hidden]. bases: [N] positions i of
        which the state and the next token are known. Step k takes token i + 1 + k at position i + k and predicts token
        i + 2 + k. It attends to the inputs of captured states up to i, and to those of its own earlier steps, as in a
        server, whose drafts are these tokens as long as they hold.
        """
        attention, last = self.midlayer.self_attn, len(embeds) - 1
        positions = torch.arange(last, device=bases.device)
        captured = self.fuse(states[:-1])
        joined = self.midlayer.join(embeds[1:], captured)
        keys, values = (
            attention.heads(attention.k_proj, joined, positions),
            attention.heads(attention.v_proj, joined, None),
        )
        visible, own = positions <= bases[:, None], torch.eye(len(bases), dtype=torch.bool, device=bases.device)
        hidden = captured[bases]
        for step in range(steps):
            at = bases + step
            joined = self.midlayer.join(embeds[(at + 1).clamp(max=last)], hidden)
            if step:
                keys = torch.cat((keys, attention.heads(attention.k_proj, joined, at)), dim=1)
                values = torch.cat((values, attention.heads(attention.v_proj, joined, None)), dim=1)
                visible = torch.cat((visible, own), dim=1)
            hidden = hidden + attention.attend(attention.heads(attention.q_proj, joined, at), keys, values, visible)
            hidden = hidden + self.midlayer.mlp(self.midlayer.post_attention_layernorm(hidden))
            yield self.lm_head(self.norm(hidden))

    def save(self, out: Path) -> None:
        """Write ``config.json`` and, in bfloat16, ``model.safetensors``."""
        (out / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        tensors = {name: tensor.detach().bfloat16().cpu() for name, tensor in self.state_dict().items()}
        if len(self.token_ids) < self.config["vocab_size"]:
            token_ids = self.token_ids.cpu()
            tensors["d2t"] = token_ids - torch.arange(len(token_ids))  # SGLang adds the number of the logit
            tensors["t2d"] = torch.zeros(self.config["vocab_size"], dtype=torch.bool).scatter(0, token_ids, True)
        save_file(tensors, out / "model.safetensors", {"format": "pt"})

    @classmethod
    def load(cls, path: Path) -> "Eagle3Head":
        """The head that ``save`` has written, in float32."""
        config = json.loads((path / "config.json").read_text())
        tensors = load_file(path / "model.safetensors")
        token_ids = torch.arange(config["draft_vocab_size"])
        tensors.pop("t2d", None)
        if "d2t" in tensors:
            token_ids += tensors.pop("d2t")
        head = cls(config, token_ids)
        head.load_state_dict(tensors)
        return head
