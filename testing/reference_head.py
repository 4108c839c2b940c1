"""An EAGLE3 head in plain torch: what a server should draft, from all hidden states at once and without a cache."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import linear, scaled_dot_product_attention, silu


class ReferenceHead:
    """The head in ``path``, a directory with config.json and model.safetensors, with the embedding of its target."""

    def __init__(self, path: Path, embedding: torch.Tensor):
        """embedding: [vocabulary, hidden] of the served model, unscaled."""
        self.config = json.loads((path / "config.json").read_text())
        self.weights = load_file(path / "model.safetensors")
        self.embedding = embedding
        self.layers: list[int] = self.config["eagle_config"]["eagle_aux_hidden_state_layer_ids"]

    def drafts(self, tokens: list[int], states: torch.Tensor, count: int) -> list[int]:
        """The ``count`` tokens that the head expects behind ``tokens`` [n].

        states: [n − 1, layers, hidden], the outputs of ``layers`` for all tokens but the last.
        """
        inputs = linear(states.flatten(1), self.weights["fc.weight"])
        known, drafted = tokens[1:], []
        for _ in range(count):
            output = self._last_row(inputs, self.embedding[torch.tensor(known)])
            logits = linear(self._norm(output, "norm"), self.weights["lm_head.weight"])
            index = int(logits.argmax())
            drafted.append(index + int(self.weights["d2t"][index]) if "d2t" in self.weights else index)
            inputs, known = torch.cat([inputs, output[None]]), [*known, drafted[-1]]
        return drafted

    def _last_row(self, inputs: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        normed = [self._norm(embedded, "midlayer.input_layernorm"), self._norm(inputs, "midlayer.hidden_norm")]
        query, key, value = (self._heads(torch.cat(normed, -1), name) for name in "qkv")
        groups = self.config["num_attention_heads"] // self.config["num_key_value_heads"]
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
        attended = scaled_dot_product_attention(self._rotated(query), self._rotated(key), value, is_causal=True)
        output = inputs[-1] + linear(attended[:, -1].flatten(), self.weights["midlayer.self_attn.o_proj.weight"])
        x = self._norm(output, "midlayer.post_attention_layernorm")
        gate, up, down = (self.weights[f"midlayer.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        return output + linear(silu(linear(x, gate)) * linear(x, up), down)

    def _heads(self, x: torch.Tensor, name: str) -> torch.Tensor:
        projected = linear(x, self.weights[f"midlayer.self_attn.{name}_proj.weight"])
        return projected.unflatten(-1, (-1, self.config["head_dim"])).transpose(0, 1)

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        """x: [heads, rows, head_dim]."""
        half = self.config["head_dim"] // 2
        angles = torch.arange(x.shape[1])[:, None] / self.config["rope_theta"] ** (torch.arange(half) / half)
        first, second = x[..., :half], x[..., half:]
        turned = first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()
        return torch.cat(turned, -1)

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.rms_norm(
            x, x.shape[-1:], self.weights[f"{name}.weight"], self.config["rms_norm_eps"]
        )
