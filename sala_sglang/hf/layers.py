"""Layers of MiniCPM-SALA over the packed tokens of a call, in the rounding order of the released model."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import torch
from sala_kernels.layout import SparseGeometry
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sala_sglang.config import SPARSE, SALAConfig
from sala_sglang.hf.cache import SequenceCache
from sala_sglang.hf.lightning import lightning_attention
from sala_sglang.hf.sparse import block_attention


@dataclass(frozen=True)
class PackedStep:
    """One forward call over the real tokens of all sequences, one after the other: N rows.

    rows: tokens of each sequence in this call. before: what the cache held at its begin; nothing changes it, because
    under gradient checkpointing layers run again. after: where the layers leave what the cache is to hold, None without
    a cache. positions: [N].
    """

    config: SALAConfig
    rows: list[int]
    before: list[SequenceCache]
    after: list[SequenceCache] | None
    positions: torch.Tensor
    sparse_geometry: SparseGeometry
    tables: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def tables_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """cos and sin [N, 1, D/2] and the log decay [H] of the lightning layers, float32; layers may be spread."""
        if device not in self.tables:
            log_decay = self.config.lightning_geometry.log_decay().to(device)
            self.tables[device] = (*rotary_tables(self.positions.to(device), self.config), log_decay)
        return self.tables[device]

    def groups(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Runs of B sequences alike in rows n > 0 and tokens before: their numbers, and [B, n, ...] of q, k and v."""
        kinds = [(rows, sequence.tokens) for rows, sequence in zip(self.rows, self.before, strict=True)]
        begin = 0
        for (rows, _), run in groupby(range(len(kinds)), key=kinds.__getitem__):
            numbers = list(run)
            end = begin + rows * len(numbers)
            if rows:
                q_run, k_run, v_run = (x[begin:end].unflatten(0, (-1, rows)) for x in (q, k, v))
                yield numbers, q_run, k_run, v_run
            begin = end

    def extend(
        self, layer: int, number: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of a sequence in a sparse layer, with the new ones [n, Hkv, D]."""
        before = self.before[number]
        if layer in before.keys:
            keys, values = torch.cat((before.keys[layer], keys)), torch.cat((before.values[layer], values))
        if self.after is not None:
            self.after[number].keys[layer], self.after[number].values[layer] = keys, values
        return keys, values


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
        outputs = [heads[0][:0]]
        for numbers, q, k, v in step.groups(*heads):
            pairs = [step.extend(self.layer, *own) for own in zip(numbers, k, v, strict=True)]
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
        cos, sin, log_decay = step.tables_on(x.device)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        outputs = [q[:0]]
        for numbers, queries, keys, values in step.groups(q, k, v):
            begun = self.layer in step.before[numbers[0]].states
            before = torch.stack([step.before[number].states[self.layer] for number in numbers]) if begun else None
            output, states = lightning_attention(queries, keys, values, before, log_decay, self.scale)
            if step.after is not None:
                for number, state in zip(numbers, states, strict=True):
                    step.after[number].states[self.layer] = state
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


class MiniCPMSALADecoderLayer(GradientCheckpointingLayer):
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
