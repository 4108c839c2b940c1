"""The model whose tokens are drafted: hidden states as a server captures them, and its distributions."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sala_sglang.hf import MiniCPMSALAForCausalLM, SALAConfig

# What a draft has in common with its target, for the names in both configurations are the same.
SHARED_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_act", "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id"),
)


def captured_layers(config: SALAConfig) -> list[int]:
    """Layers whose outputs an EAGLE3 head reads, SGLang's choice: one near each end and one in the middle.

    The output of layer i is the joined residual stream that layer i + 1 gets, before its norm.
    """
    layers = config.num_hidden_layers
    return [1, layers // 2 - 1, layers - 4]


class Target:
    """A checkpoint in plain PyTorch, for one conversation at a time; its weights stay as they are."""

    def __init__(self, path: Path, device: str, dtype: torch.dtype):
        self.model = MiniCPMSALAForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()
        self.config = self.model.config
        self._captured: list[torch.Tensor] = []
        for layer in captured_layers(self.config):
            self.model.model.layers[layer + 1].register_forward_pre_hook(self._capture)

    def _capture(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._captured.append(inputs[0])

    @torch.no_grad()
    def states(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Captured states [T, 3 · hidden], from low to high, and last hidden states [T, hidden] of tokens [T]."""
        self._captured.clear()
        last = self.model.model(ids[None], use_cache=False).last_hidden_state[0]
        return torch.cat(self._captured, dim=-1), last

    @torch.no_grad()
    def logits(self, last: torch.Tensor) -> torch.Tensor:
        """Logits [N, vocabulary] float32 of the tokens after those with last hidden states [N, hidden]."""
        return self.model.lm_head(last / self.config.logit_divisor).float()

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows [T, hidden] of the embedding table: SGLang gives them to a head without ``scale_emb``."""
        return self.model.model.embed_tokens(ids).detach()
