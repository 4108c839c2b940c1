"""LoRA adapters of this model: their tensors by released names become those of the merged layers.

SGLang stacks q, k and v, and gate and up, by names of its own, takes one rank and one factor for all tensors of an
adapter, and leaves out what it does not know. Here every tensor of an adapter finds its place or is refused by name: q,
k, v and gate of both mixers in one stack, absent parts as zeros, KV heads copied as the weights are, and ranks and
factors of single layers (``rank_pattern``, ``alpha_pattern``, ``use_rslora``) folded into the tensors.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch

from sala_sglang.checkpoint.parameter_shapes import layer_shapes
from sala_sglang.config import SALAConfig
from sala_sglang.models.merged_projections import GATES, copy_kv_heads, kv_copies, merged_parts

MERGED_TARGETS = dict.fromkeys(("q_proj", "k_proj", "v_proj", *GATES.values(), "qkv_proj"), "qkvg_proj")
RELEASED_TARGETS = (
    "q_proj", "k_proj", "v_proj", *GATES.values(), "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens",
    "lm_head",
)  # fmt: skip
# (field of adapter_config.json, the values that work, what SGLang makes of others)
ADAPTER_LIMITS: tuple[tuple[str, tuple, str], ...] = (
    ("bias", (None, "none"), "biases of an adapter are not applied"),
    ("lora_bias", (None, False), "biases of an adapter are not applied"),
    ("modules_to_save", (None, []), "whole layers of an adapter are not loaded"),
    ("trainable_token_indices", (None, [], {}), "single rows of the embedding are not loaded"),
    ("target_parameters", (None, []), "adapters of single parameters are not loaded"),
    ("layer_replication", (None, []), "the layers are those of the model"),
    ("fan_in_fan_out", (None, False), "weights are not transposed"),
    ("alora_invocation_tokens", (None, []), "an adapter applies to the whole of a request"),
    ("use_qalora", (None, False), "inputs are not pooled"),
    ("megatron_config", (None,), "layers of Megatron are not known"),
)
_WEIGHT = re.compile(r"(?P<front>.*?\blayers\.(?P<layer>\d+)\.)(?P<linear>[\w.]+)\.lora_(?P<side>[AB])\.(?P<end>.*)")


def merged_targets(original: Callable, target_modules: Any) -> set[str]:
    """SGLang's names of the layers that an adapter or the command line names."""
    return {MERGED_TARGETS.get(name, name) for name in original(target_modules)}


def all_targets(original: Callable, model: Any) -> set[str]:
    """The layers behind PEFT's ``all-linear``."""
    from sala_sglang.models.lora import LINEAR_TARGETS

    return set(LINEAR_TARGETS)


def validate(original: Callable, manager: Any, adapter_config: Any, lora_ref: Any) -> None:
    """Raise ValueError for an adapter of which SGLang would leave something out."""
    given = adapter_config.hf_config
    for field, allowed, reason in ADAPTER_LIMITS:
        if given.get(field) not in allowed:
            shown = ", ".join(map(repr, allowed))
            raise ValueError(
                f"LoRA adapter {lora_ref.lora_name}: {field} = {given[field]!r} is not supported ({reason}); "
                f"allowed: {shown}"
            )
    _check_targets(given["target_modules"], lora_ref.lora_name, manager.lora_backend.name)
    original(manager, adapter_config, lora_ref)


def _check_targets(targets: str | Iterable[str], adapter: str, backend: str) -> None:
    names = () if isinstance(targets, str) else [name.rsplit(".", 1)[-1] for name in targets]
    # SGLang's backend for CPUs divides the rows of the head as if it computed logits for all of them.
    allowed = [name for name in RELEASED_TARGETS if (name, backend) != ("lm_head", "torch_native")]
    if unknown := sorted(set(names) - set(allowed)):
        raise ValueError(
            f"LoRA adapter {adapter}: target_modules = {unknown} are not supported; allowed: {', '.join(allowed)}"
        )


def normalize(original: Callable, adapter: Any) -> None:
    """Bring the tensors of an adapter into the form of this model's layers, in place."""
    config = adapter.base_hf_config
    if not isinstance(config, SALAConfig):
        return original(adapter)
    factors = Factors(adapter.config.hf_config)
    for index, layer in enumerate(adapter.layers):
        layer.weights = merge_layer(layer.weights, config, index, factors)
    adapter.embedding_layers = scale_embeddings(adapter.embedding_layers, factors)


class Factors:
    """Rank and factor of every layer of an adapter, against the ones that SGLang takes for all of them."""

    def __init__(self, adapter_config: dict[str, Any]):
        self.rank, self.alpha = adapter_config["r"], adapter_config["lora_alpha"]
        self.ranks, self.alphas = (adapter_config.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
        self.by_root = adapter_config.get("use_rslora", False)

    def of(self, linear: str) -> tuple[int, float]:
        """Rank of a layer, and by what its product has to be multiplied besides SGLang's ``alpha / r``.

        Raises ValueError for a rank beyond that of the adapter, for which there is no room.
        """
        rank, alpha = _matching(self.ranks, linear, self.rank), _matching(self.alphas, linear, self.alpha)
        if rank > self.rank:
            raise ValueError(f"rank_pattern: got {rank} for {linear}; allowed: up to r = {self.rank}")
        scaling = alpha / (math.sqrt(rank) if self.by_root else rank)
        return rank, scaling * self.rank / self.alpha

    def fit(self, side: str, tensor: torch.Tensor, linear: str) -> torch.Tensor:
        """A [rank, inputs] or B [outputs, rank] of a layer with the rank and factor of the adapter."""
        rank, factor = self.of(linear)
        missing = self.rank - rank
        if side == "A":
            return torch.nn.functional.pad(tensor, (0, 0, 0, missing))
        scaled = tensor if factor == 1 else (tensor.float() * factor).to(tensor.dtype)
        return torch.nn.functional.pad(scaled, (0, missing))


def _matching(pattern: dict[str, Any], linear: str, default: float) -> Any:
    """The value of the first key that matches the end of a layer's name, as PEFT has it."""
    return next((value for key, value in pattern.items() if re.fullmatch(rf"(.*\.)?({key})", linear)), default)


def merge_layer(
    weights: dict[str, torch.Tensor], config: SALAConfig, index: int, factors: Factors
) -> dict[str, torch.Tensor]:
    """An adapter's tensors of one decoder layer by the names of this model.

    weights: A [rank, inputs] and B [outputs, rank] by released names. Of merged layers A has the parts one below the
    other, and so has B. Raises ValueError naming a tensor that is unknown, has another shape, or lacks its counterpart.
    """
    if not weights:
        return {}
    kind, ranks = config.layer_kinds[index], _ranks()
    shapes = layer_shapes(config, kind)
    found, front, end = _by_linear(weights, shapes, factors)
    merged: dict[str, torch.Tensor] = {}
    alone = {name: (name,) for name in ("self_attn.o_proj", "mlp.down_proj")}
    for name, parts in (merged_parts(kind) | alone).items():
        given = next((found[part] for part in parts if part in found), None)
        if given is None:
            continue
        pairs = [found.get(part) or _absent(shapes[part], factors.rank, given) for part in parts]
        downs, ups = ([pair[side] for pair in pairs] for side in ("A", "B"))
        if name == "self_attn.qkvg_proj":
            copies = kv_copies(config, kind, ranks)
            ups[1:3] = (copy_kv_heads(up, config.head_dim, copies) if copies > 1 else up for up in ups[1:3])
        merged[f"{front}{name}.lora_A.{end}"] = torch.cat(downs)
        merged[f"{front}{name}.lora_B.{end}"] = torch.cat(ups)
    return merged


def _by_linear(
    weights: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]], factors: Factors
) -> tuple[dict[str, dict[str, torch.Tensor]], str, str]:
    """A and B of every released linear layer, and what stands in front of and behind its name."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    front = end = ""
    for name, tensor in weights.items():
        match = _WEIGHT.fullmatch(name)
        shape = shapes.get(match["linear"]) if match else None
        if match is None or shape is None or len(shape) != 2:
            linear = ", ".join(linear for linear, shape in shapes.items() if len(shape) == 2)
            raise ValueError(f"the adapter has an unknown tensor: {name}; allowed are lora_A and lora_B of {linear}")
        front, linear, side, end = match["front"], match["linear"], match["side"], match["end"]
        rank, _ = factors.of(f"model.layers.{match['layer']}.{linear}")
        expected = (rank, shape[1]) if side == "A" else (shape[0], rank)
        if tuple(tensor.shape) != expected:
            raise ValueError(f"the adapter's {name} has shape {list(tensor.shape)}, expected {list(expected)}")
        found.setdefault(linear, {})[side] = factors.fit(side, tensor, f"model.layers.{match['layer']}.{linear}")
    for linear, pair in found.items():
        if len(pair) != 2:
            raise ValueError(f"the adapter has only lora_{next(iter(pair))} of {front}{linear}; allowed: both or none")
    return found, front, end


def _absent(shape: tuple[int, ...], rank: int, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Zeros for a layer with a weight of ``shape`` that the adapter leaves alone."""
    outputs, inputs = shape
    return {"A": like["A"].new_zeros(rank, inputs), "B": like["B"].new_zeros(outputs, rank)}


def scale_embeddings(weights: dict[str, torch.Tensor], factors: Factors) -> dict[str, torch.Tensor]:
    """The adapter's tensors of the embedding and the head with the rank and factor of the adapter."""
    scaled = {}
    for name, tensor in weights.items():
        linear = "model.embed_tokens" if "embed_tokens" in name else "lm_head"
        scaled[name] = factors.fit("A" if "lora_A" in name or "lora_embedding_A" in name else "B", tensor, linear)
    return scaled


def _ranks() -> int:
    from sglang.srt.runtime_context import get_parallel

    return get_parallel().attn_tp_size


# SGLang's functions and what runs around them.
HOOKS: dict[str, Callable] = {
    "sglang.srt.lora.utils.get_normalized_target_modules": merged_targets,
    "sglang.srt.lora.utils.auto_detect_lora_target_modules": all_targets,
    "sglang.srt.lora.lora_manager.LoRAManager.validate_new_adapter": validate,
    "sglang.srt.lora.lora.LoRAAdapter._normalize_weights": normalize,
}
