"""MiniCPM-SALA: block-sparse and lightning attention layers, in the rounding order of the released model."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from sala_kernels.layout import SparseGeometry
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from sala_sglang.config import SPARSE, SALAConfig
from sala_sglang.hf.cache import SALACache, SequenceCache
from sala_sglang.hf.lightning import lightning_attention
from sala_sglang.hf.sparse import block_attention


@dataclass(frozen=True)
class PackedStep:
    """One forward call over the real tokens of all sequences, one after the other: N rows.

    rows: tokens of each sequence in this call. sequences: what came before, extended by the layers.
    cos, sin: [N, 1, D/2] float32.
    """

    rows: list[int]
    sequences: list[SequenceCache]
    cos: torch.Tensor
    sin: torch.Tensor
    sparse_geometry: SparseGeometry
    log_decay: torch.Tensor

    def groups(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> Iterator[tuple[list[SequenceCache], torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Runs of B sequences alike in rows n > 0 and tokens before: their caches, and [B, n, ...] of q, k and v."""
        alike = groupby(zip(self.rows, self.sequences, strict=True), key=lambda pair: (pair[0], pair[1].tokens))
        begin = 0
        for (rows, _), pairs in alike:
            sequences = [sequence for _, sequence in pairs]
            end = begin + rows * len(sequences)
            if rows:
                q_run, k_run, v_run = (x[begin:end].unflatten(0, (-1, rows)) for x in (q, k, v))
                yield sequences, q_run, k_run, v_run
            begin = end


class MiniCPMSALARMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


class MiniCPMSALASparseAttention(nn.Module):
    """Block-sparse attention without positions (NoPE), with an output gate."""

    def __init__(self, config: SALAConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, kv_width = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.o_gate = nn.Linear(config.hidden_size, width, bias=False)

    def forward(self, x: torch.Tensor, step: PackedStep) -> torch.Tensor:
        heads = [p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj)]
        outputs = []
        for sequences, q, k, v in step.groups(*heads):
            pairs = [sequence.append(self.layer, *kv) for sequence, *kv in zip(sequences, k, v, strict=True)]
            keys, values = (torch.stack(x) for x in zip(*pairs, strict=True))
            outputs.append(block_attention(q, keys, values, step.sparse_geometry).flatten(0, 1))
        return self.o_proj(torch.cat(outputs).flatten(1) * self.o_gate(x).sigmoid())


class MiniCPMSALALightningAttention(nn.Module):
    """Linear attention with constant decay, rotary positions, a norm over the full width and an output gate."""

    def __init__(self, config: SALAConfig, layer: int):
        super().__init__()
        geometry = config.lightning_geometry
        self.layer, self.head_dim, self.scale = layer, geometry.head_dim, geometry.scale
        width = geometry.num_heads * geometry.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.z_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.q_norm = MiniCPMSALARMSNorm(geometry.head_dim, config.rms_norm_eps)
        self.k_norm = MiniCPMSALARMSNorm(geometry.head_dim, config.rms_norm_eps)
        self.o_norm = MiniCPMSALARMSNorm(width, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, step: PackedStep) -> torch.Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), step.cos, step.sin), rotate(self.k_norm(k), step.cos, step.sin)
        outputs = []
        for sequences, queries, keys, values in step.groups(q, k, v):
            begun = self.layer in sequences[0].states
            before = torch.stack([sequence.states[self.layer] for sequence in sequences]) if begun else None
            output, after = lightning_attention(queries, keys, values, before, step.log_decay, self.scale)
            for sequence, state in zip(sequences, after, strict=True):
                sequence.states[self.layer] = state
            outputs.append(output.flatten(0, 1))
        return self.o_proj(self.o_norm(torch.cat(outputs).flatten(1)) * self.z_proj(x).sigmoid())


class MiniCPMSALAMLP(nn.Module):
    def __init__(self, config: SALAConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class MiniCPMSALADecoderLayer(nn.Module):
    def __init__(self, config: SALAConfig, layer: int):
        super().__init__()
        sparse = config.layer_kinds[layer] == SPARSE
        self.self_attn = (MiniCPMSALASparseAttention if sparse else MiniCPMSALALightningAttention)(config, layer)
        self.mlp = MiniCPMSALAMLP(config)
        self.input_layernorm = MiniCPMSALARMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = MiniCPMSALARMSNorm(config.hidden_size, config.rms_norm_eps)
        self.residual_scale = config.residual_scale

    def forward(self, hidden: torch.Tensor, step: PackedStep) -> torch.Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), step) * self.residual_scale
        return hidden + self.mlp(self.post_attention_layernorm(hidden)) * self.residual_scale


class MiniCPMSALAPreTrainedModel(PreTrainedModel):
    config_class = SALAConfig
    base_model_prefix = "model"
    _no_split_modules = ("MiniCPMSALADecoderLayer",)


class MiniCPMSALAModel(MiniCPMSALAPreTrainedModel):
    def __init__(self, config: SALAConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MiniCPMSALADecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = MiniCPMSALARMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: SALACache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, hidden] after the last norm.

        input_ids: [B, T], or inputs_embeds [B, T, hidden]. attention_mask: [B, at least T]; its last T columns
        mark real tokens with 1. Padding is left out of everything and its hidden states are 0. Positions
        count the real tokens of the sequence. Raises ValueError on inputs that do not fit together.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        keep = real_tokens(attention_mask, *embeds.shape[:2])
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        cache = SALACache() if use_cache and past_key_values is None else past_key_values

        hidden = (embeds.flatten(0, 1) if keep is None else embeds[keep]) * self.config.scale_emb
        step = self._step(embeds, keep, cache)
        for layer in self.layers:
            hidden = layer(hidden, step)
        hidden = self.norm(hidden)

        if cache is not None:
            cache.advance(step.rows, embeds.shape[1])
        if keep is not None:
            hidden = torch.zeros_like(embeds).masked_scatter(keep[..., None], hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden.view_as(embeds), past_key_values=cache)

    def _step(self, embeds: torch.Tensor, keep: torch.Tensor | None, cache: SALACache | None) -> PackedStep:
        batch, columns = embeds.shape[:2]
        rows = [columns] * batch if keep is None else keep.sum(1).tolist()
        sequences = (SALACache() if cache is None else cache).of_batch(batch)
        starts = [sequence.tokens for sequence in sequences]
        positions = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, rows, strict=True)])
        cos, sin = rotary_tables(positions.to(embeds.device), self.config)
        log_decay = self.config.lightning_geometry.log_decay().to(embeds.device)
        return PackedStep(rows, sequences, cos, sin, self.config.sparse_geometry, log_decay)


class MiniCPMSALAForCausalLM(MiniCPMSALAPreTrainedModel, GenerationMixin):
    def __init__(self, config: SALAConfig):
        super().__init__(config)
        self.model = MiniCPMSALAModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: SALACache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, vocab] float32 (float64 of a float64 model), and with ``labels`` [B, T] the mean loss.

        Labels are the inputs, −100 where no loss is wanted; the shift by one happens here. logits_to_keep:
        only the last so many positions, or those given. The other arguments are those of the base model.
        """
        outputs = self.model(input_ids, attention_mask, past_key_values, inputs_embeds, use_cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = outputs.last_hidden_state[:, kept]
        logits = self.lm_head(hidden / self.config.logit_divisor)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = None
        if labels is not None:
            vocab_size = self.config.vocab_size
            loss = self.loss_function(logits, labels, vocab_size=vocab_size, num_items_in_batch=num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        # generate() would make a DynamicCache, which holds no recurrent state.
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = SALACache()
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)


def real_tokens(attention_mask: torch.Tensor | None, batch: int, columns: int) -> torch.Tensor | None:
    """Which of the [B, T] inputs are real tokens, bool; None if all are. Raises ValueError on another shape."""
    if attention_mask is None:
        return None
    if attention_mask.ndim != 2 or len(attention_mask) != batch or attention_mask.shape[1] < columns:
        shape = list(attention_mask.shape)
        raise ValueError(f"attention_mask: expected shape [{batch}, at least {columns}], got {shape}")
    keep = attention_mask[:, -columns:].bool()
    return None if keep.all() else keep


def rotary_tables(positions: torch.Tensor, config: SALAConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [N, 1, D/2] of the lightning layers, float32 in every model dtype.

    Made from the configuration at each call: a table kept as a buffer is lost when a model is loaded by way of
    the meta device, and is rounded when it is cast.
    """
    dim = config.lightning_head_dim
    exponents = torch.arange(0, dim, 2, device=positions.device).float() / dim
    angles = positions.float()[:, None, None] * (1.0 / config.rope_theta**exponents)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [N, H, D]; dimension i pairs with i + D/2. Rounded once, to the dtype of x."""
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
