"""Projections that share an input are one matrix product: which they are, how wide, and how KV heads are copied."""

import torch

from sala_sglang.config import LIGHTNING, SPARSE, SALAConfig

GATES = {SPARSE: "o_gate", LIGHTNING: "z_proj"}


def merged_parts(kind: str) -> dict[str, tuple[str, ...]]:
    """Released linear layers that are one parameter here, by its name, of a decoder layer of ``kind``."""
    return {
        "self_attn.qkvg_proj": tuple(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", GATES[kind])),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    }


def kv_copies(config: SALAConfig, kind: str, ranks: int) -> int:
    """How often a KV head is held: where ranks outnumber KV heads, each has a copy of what its query heads use."""
    return max(1, ranks // config.num_key_value_heads) if kind == SPARSE else 1


def qkvg_widths(config: SALAConfig, kind: str, ranks: int) -> list[int]:
    """Output features of q, k, v and gate of a mixer over all ``ranks`` together, copies of KV heads included."""
    if kind == LIGHTNING:
        return [config.lightning_nh * config.lightning_head_dim] * 4
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * kv_copies(config, kind, ranks) * config.head_dim
    return [query, key, key, query]


def copy_kv_heads(rows: torch.Tensor, head_dim: int, copies: int) -> torch.Tensor:
    """Rows of k or v [Hkv·D, …] head by head, each head ``copies`` times: [Hkv·copies·D, …]."""
    return rows.unflatten(0, (-1, head_dim)).repeat_interleave(copies, dim=0).flatten(0, 1)
