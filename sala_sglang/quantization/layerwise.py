"""The plain model with one of its layers in memory at a time."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from sala_sglang.hf.arguments import count_positions
from sala_sglang.hf.cache import SequenceCache
from sala_sglang.hf.layers import MiniCPMSALADecoderLayer, MiniCPMSALARMSNorm, PackedStep
from sala_sglang.quantization.weights import CheckpointWeights

HEAD_ROWS = 1024  # whose logits are in memory at a time


class LayerwiseModel:
    """What ``sala_sglang.hf`` computes, from weights that are read when their layer is asked for.

    Hidden states [T, hidden] are those of one text each; they are kept where the caller has them and go to ``device``
    for a layer. dtype: of weights and hidden states.
    """

    def __init__(self, weights: CheckpointWeights, device: str, dtype: torch.dtype):
        self.weights, self.config = weights, weights.config
        self.device, self.dtype = device, dtype

    def embed(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Inputs of the first layer for texts of token ids."""
        table = self.weights.weight("model.embed_tokens.weight")
        return [table[torch.tensor(text)].to(self.dtype) * self.config.scale_emb for text in texts]

    def layer(self, index: int) -> MiniCPMSALADecoderLayer:
        """A decoder layer on the device."""
        prefix = f"model.layers.{index}."
        with torch.device("meta"):
            layer = MiniCPMSALADecoderLayer(self.config, index)
        state = {
            name.removeprefix(prefix): self.weights.weight(name).to(self.device, self.dtype)
            for name in self.weights.shapes
            if name.startswith(prefix)
        }
        layer.load_state_dict(state, assign=True)
        return layer.eval().requires_grad_(False)

    @torch.no_grad()
    def run(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """What a layer makes of the hidden states of a text from its begin."""
        positions = count_positions([0], [len(hidden)])
        step = PackedStep(self.config, [len(hidden)], [SequenceCache()], None, positions, self.config.sparse_geometry)
        return layer(hidden.to(self.device), step).to(hidden.device)

    @torch.no_grad()
    def log_probabilities(self, *hidden: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Log-probabilities [n, vocabulary] float32 behind the last layer, of some rows of every one of ``hidden``."""
        norm = MiniCPMSALARMSNorm(self.config.hidden_size, self.config.rms_norm_eps)
        norm.weight = nn.Parameter(self.weights.weight("model.norm.weight").to(self.device, self.dtype), False)
        head = self.weights.weight("lm_head.weight").to(self.device, self.dtype)
        for parts in zip(*(one.split(HEAD_ROWS) for one in hidden), strict=True):
            scaled = (norm(part.to(self.device)) / self.config.logit_divisor for part in parts)
            yield tuple((one @ head.T).float().log_softmax(-1).cpu() for one in scaled)
