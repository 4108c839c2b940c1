"""Loading of released tensors into the merged, sharded parameters of the served model."""

from collections.abc import Iterable

import torch
from sglang.srt.model_loader.weight_utils import default_weight_loader
from sglang.srt.runtime_context import get_parallel
from torch import nn

from sala_sglang.checkpoint.parameter_shapes import tensor_shapes
from sala_sglang.config import SALAConfig
from sala_sglang.models.merged_projections import copy_kv_heads, kv_copies, merged_parts


class WeightLoader:
    """Places tensors by their released names.

    The first load must bring every tensor; later ones (weight updates of a running server) may bring any part.
    Raises ValueError naming tensors that are unknown, missing or of the wrong shape.
    """

    def __init__(self, config: SALAConfig) -> None:
        self.config = config
        self.shapes = tensor_shapes(config)
        self.complete = False

    def load(self, model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        parameters = dict(model.named_parameters())
        seen = set()
        for name, tensor in weights:
            self._check(name, tensor)
            self._place(parameters, name, tensor)
            seen.add(name)
        if not self.complete and (missing := self.shapes.keys() - seen):
            raise ValueError(f"the checkpoint lacks {len(missing)} tensors: {_some(missing)}")
        self.complete = True

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        expected = self.shapes.get(name)
        if expected is None:
            raise ValueError(f"the checkpoint has an unknown tensor: {name}")
        if tuple(tensor.shape) != expected:
            raise ValueError(f"the checkpoint's {name} has shape {list(tensor.shape)}, expected {list(expected)}")

    def _place(self, parameters: dict, name: str, tensor: torch.Tensor) -> None:
        target, shard = self._target(name)
        parameter = parameters[target]
        if shard is None:
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
            return
        if name.endswith((".k_proj.weight", ".v_proj.weight")):
            copies = kv_copies(self.config, self._kind(name), get_parallel().attn_tp_size)
            tensor = copy_kv_heads(tensor, self.config.head_dim, copies) if copies > 1 else tensor
        parameter.weight_loader(parameter, tensor, shard)

    def _target(self, name: str) -> tuple[str, int | None]:
        """Parameter and shard that a released tensor goes to."""
        if not name.startswith("model.layers."):
            return name, None
        layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
        for merged, parts in merged_parts(self._kind(name)).items():
            if part in parts:
                return f"model.layers.{layer}.{merged}.weight", parts.index(part)
        return name, None

    def _kind(self, name: str) -> str:
        """Kind of the decoder layer that a released tensor belongs to."""
        return self.config.layer_kinds[int(name.split(".")[2])]


def _some(names: set[str], limit: int = 8) -> str:
    shown = sorted(names)[:limit]
    return ", ".join(shown) + (", …" if len(names) > limit else "")
