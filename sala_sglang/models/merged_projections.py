"""Projections that share an input are one matrix product: which they are, how wide, and how KV heads are copied."""

from collections.abc import Callable, Hashable
from itertools import groupby

import torch

from sala_sglang.config import LIGHTNING, SPARSE, SALAConfig

GATES = {SPARSE: "o_gate", LIGHTNING: "z_proj"}


def merged_parts(kind: str) -> dict[str, tuple[str, ...]]:
    """Released linear layers that are one parameter here, by its name, of a decoder layer of ``kind``."""
    return {
        "self_attn.qkvg_proj": tuple(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", GATES[kind])),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    }


def merged_runs(kind: str, scheme_of: Callable[[str], Hashable]) -> dict[str, tuple[str, ...]]:
    """The same where parts of a merged layer may differ in how they are quantised: a layer for each run of equal ones.

    scheme_of: anything that tells the scheme of a released layer. Runs are named after the parts that they have.
    """
    found: dict[str, tuple[str, ...]] = {}
    for merged, parts in merged_parts(kind).items():
        runs = [tuple(run) for _, run in groupby(parts, key=scheme_of)]
        found |= {merged: runs[0]} if len(runs) == 1 else {_run_name(run, kind): run for run in runs}
    return found


def _run_name(parts: tuple[str, ...], kind: str) -> str:
    room, first = parts[0].split(".")
    if len(parts) == 1:
        return f"{room}.{first}"
    letters = "".join("g" if part.endswith(GATES[kind]) else part.split(".")[1][0] for part in parts)
    return f"{room}.{letters}_proj"


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
