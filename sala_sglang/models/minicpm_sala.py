"""MiniCPM-SALA for SGLang. Formulas and rounding follow the released modelling code."""

from collections.abc import Iterable
from itertools import islice
from typing import cast

import torch
from sala_kernels.scaled_add_norm import scaled_add_norm
from sglang.srt.layers.aux_hidden_states import AuxHiddenStatePacker
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.utils import PPMissingLayer
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.runtime_context import get_lora, get_parallel
from sglang.srt.utils import add_prefix
from torch import nn

from sala_sglang.config import SALAConfig
from sala_sglang.models.draft_inputs import DraftInputs
from sala_sglang.models.last_rows import last_rows
from sala_sglang.models.layers import DecoderLayer
from sala_sglang.models.loading import WeightLoader
from sala_sglang.models.lora import LoRATargets
from sala_sglang.models.pipeline import Stage, this_stage
from sala_sglang.models.projections import plan_of
from sala_sglang.models.sharding import check_tensor_parallel
from sala_sglang.models.skinny_linear import use_skinny_linear

# What a pipeline stage hands on, by the names that SGLang has for it: branch and residual stream.
HANDED_ON = ("hidden_states", "residual")


class MiniCPMSALAModel(nn.Module):
    """The decoder layers of a pipeline stage, with the embedding on the first and the norm on the last."""

    def __init__(self, config: SALAConfig, stage: Stage, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        self.config, self.stage = config, stage
        self.embed_tokens = (
            VocabParallelEmbedding(config.vocab_size, config.hidden_size, prefix=add_prefix("embed_tokens", prefix))
            if stage.is_first
            else PPMissingLayer()
        )
        # Layers keep their place in the whole model, by which SGLang and checkpoints know them.
        self.layers = nn.ModuleList(
            DecoderLayer(config, i, quant_config, add_prefix(f"layers.{i}", prefix))
            if stage.has_layer(i)
            else PPMissingLayer()
            for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps) if stage.is_last else PPMissingLayer()
        self.captured: tuple[int, ...] = ()  # layers whose input a draft model reads

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        input_embeds: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
        pp_proxy_tensors: PPProxyTensors | None = None,
        states: AuxHiddenStatePacker | None = None,
    ) -> torch.Tensor | PPProxyTensors:
        """Normed hidden states [T, hidden_size], or of ``rows`` [B] alone, the last of every request.

        pp_proxy_tensors: branch and residual stream [T, hidden_size] from the stage before. A stage that is not the
        last returns its own, for all rows. states: takes the inputs of the layers in ``captured``, for all rows.
        """
        config, layers = self.config, islice(enumerate(self.layers), self.stage.begin, self.stage.end)
        if self.stage.is_first:
            branch = self.embed_tokens(input_ids) if input_embeds is None else self._given(input_embeds)
            # The scaled embedding joins an empty residual stream.
            hidden, scale = torch.zeros_like(branch), config.scale_emb
        else:
            assert pp_proxy_tensors is not None
            branch, hidden = (pp_proxy_tensors[name] for name in HANDED_ON)
            scale = config.residual_scale
        idle = forward_batch.forward_mode.is_idle()  # no rows: nothing to compute, and no backend has a plan
        for index, layer in () if idle else layers:
            needed = rows if layer is self.layers[-1] else None
            capture = states.append if states is not None and index in self.captured else None
            branch, hidden = layer(branch, hidden, scale, positions, forward_batch, needed, capture)
            scale = config.residual_scale
        if not self.stage.is_last:
            return PPProxyTensors(dict(zip(HANDED_ON, (branch, hidden), strict=True)))
        if idle:
            return branch
        return cast(torch.Tensor, scaled_add_norm(branch, hidden, scale, self.norm.weight, config.rms_norm_eps)[0])

    def _given(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings from a request, which arrive in bfloat16, in the model's dtype."""
        return embeddings.to(self.embed_tokens.weight.dtype)


class MiniCPMSALAForCausalLM(DraftInputs, LoRATargets, nn.Module):
    """The served model. Parameters load from the released names; unknown or missing ones are refused by name."""

    def __init__(self, config: SALAConfig, quant_config: QuantizationConfig | None = None, prefix: str = "") -> None:
        super().__init__()
        check_tensor_parallel(config, get_parallel().attn_tp_size)
        self.config = config
        self.quant_config = quant_config
        stage = this_stage(config)
        self.start_layer, self.end_layer = stage.begin, stage.end  # SGLang's pools have these layers alone
        self.model = MiniCPMSALAModel(config, stage, quant_config, add_prefix("model", prefix))
        self.lm_head = (
            ParallelLMHead(config.vocab_size, config.hidden_size, prefix=add_prefix("lm_head", prefix))
            if stage.is_last
            else PPMissingLayer()
        )
        self.logits_processor = LogitsProcessor(config)
        self.weight_loader = WeightLoader(config, plan_of(quant_config), stage)
        self.with_lora = bool(get_lora().enable_lora)
        use_skinny_linear(self)

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        input_embeds: torch.Tensor | None = None,
        pp_proxy_tensors: PPProxyTensors | None = None,
    ) -> LogitsProcessorOutput | PPProxyTensors:
        if not self.model.stage.is_last:
            return self.model(input_ids, positions, forward_batch, input_embeds, None, pp_proxy_tensors)
        # Layers with LoRA know which rows are whose for the whole step alone.
        rows, logits_metadata = (None, forward_batch) if self.with_lora else last_rows(forward_batch, len(positions))
        states = self.new_states(forward_batch)
        hidden = self.model(input_ids, positions, forward_batch, input_embeds, rows, pp_proxy_tensors, states)
        hidden = hidden / self.config.logit_divisor
        captured = self.packed_states(states, hidden)
        return self.logits_processor(input_ids, hidden, self.lm_head, logits_metadata, captured)

    def post_load_weights(self) -> None:
        """Called by SGLang's loaders that write the parameters themselves, as with random values for training."""
        self.weight_loader.complete = True

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.weight_loader.load(self, weights)
