"""What SGLang's draft models read of this model: hidden states of a few layers, and the tables at both ends."""

from typing import Any

import torch
from sglang.srt.layers.aux_hidden_states import AuxHiddenStatePacker
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

from sala_sglang.config import SALAConfig
from sala_sglang.models.captured import captured_layers


class DraftInputs:
    """Mixin of the model; the names of its methods are SGLang's."""

    config: SALAConfig
    model: Any  # MiniCPMSALAModel
    lm_head: Any

    def get_embed_and_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of the embedding, without ``scale_emb``, and of the head, before which states are divided."""
        return self.model.embed_tokens.weight, self.lm_head.weight

    def set_eagle3_layers_to_capture(self, layer_ids: list[int] | None = None) -> None:
        """Called once, before any step. Raises ValueError for layers that are not there."""
        self.model.captured = captured_layers(layer_ids, self.config.num_hidden_layers)

    def new_states(self, batch: ForwardBatch) -> AuxHiddenStatePacker | None:
        """What takes the inputs of ``model.captured`` in this step; None where nobody reads them."""
        if not self.model.captured or not batch.capture_hidden_mode.need_capture():
            return None
        return AuxHiddenStatePacker.for_batch(batch, len(self.model.captured))

    def packed_states(self, states: AuxHiddenStatePacker | None, hidden: torch.Tensor) -> torch.Tensor | None:
        """[T, layers · hidden_size], those of the first layer first. hidden: the step's output, of no rows if idle."""
        if states is None:
            return None
        width = len(self.model.captured) * self.config.hidden_size
        return states.finalize() if len(states) else hidden.new_empty(len(hidden), width)
