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

    The first load must fill every parameter of the model; later ones (weight updates of a running server) may bring
    any part. complete: whether the parameters have been filled, here or by a loader of SGLang that writes them itself.
    """

    def __init__(self, config: SALAConfig) -> None:
        self.config = config
        self.shapes = tensor_shapes(config)
        self.complete = False

    def load(self, model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Place ``weights``, pairs of a released name and its tensor.

        Raises ValueError naming tensors that are unknown, missing, given twice, of the wrong shape, or of a dtype that
        their parameter cannot take, and parameters that no tensor fills. SGLang's own copies would cast 16 bits to
        integers without a word, and leave scales that the files lack as memory was.
        """
        # SGLang wraps a layer with LoRA: its parameters are those of `base_layer` then.
        parameters = {name.replace(".base_layer.", "."): value for name, value in model.named_parameters()}
        seen, filled = set(), set()
        for name, tensor in weights:
            if name in seen:
                raise ValueError(f"the checkpoint has {name} twice")
            seen.add(name)
            self._check(name, tensor)
            filled.add(self._place(parameters, name, tensor))
        if not self.complete:
            self._check_all(parameters.keys() - filled, self.shapes.keys() - seen)
        self.complete = True

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        expected = self.shapes.get(name)
        if expected is None:
            raise ValueError(f"the checkpoint has an unknown tensor: {name}")
        if tuple(tensor.shape) != expected:
            raise ValueError(f"the checkpoint's {name} has shape {list(tensor.shape)}, expected {list(expected)}")

    def _check_all(self, unfilled: set[str], missing: set[str]) -> None:
        if missing:
            raise ValueError(f"the checkpoint lacks {len(missing)} tensors: {_some(missing)}")
        if unfilled:
            raise ValueError(f"no tensor of the checkpoint fills {len(unfilled)} parameters: {_some(unfilled)}")

    def _place(self, parameters: dict, name: str, tensor: torch.Tensor) -> str:
        """Copy a released tensor to where it belongs, and return the parameter's name."""
        target, shard = self._target(name)
        parameter = parameters[target]
        if _dtype_class(tensor.dtype) != _dtype_class(parameter.dtype):
            raise ValueError(f"the checkpoint's {name} is {tensor.dtype}, and its parameter {parameter.dtype}")
        if shard is None:
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
            return target
        if name.endswith((".k_proj.weight", ".v_proj.weight")):
            copies = kv_copies(self.config, self._kind(name), get_parallel().attn_tp_size)
            tensor = copy_kv_heads(tensor, self.config.head_dim, copies) if copies > 1 else tensor
        parameter.weight_loader(parameter, tensor, shard)
        return target

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


def _dtype_class(dtype: torch.dtype) -> torch.dtype:
    """One for all floating-point formats of 16 bits and more, which are cast into each other; else the dtype itself."""
    return torch.float32 if dtype.is_floating_point and dtype.itemsize > 1 else dtype


def _some(names: set[str], limit: int = 8) -> str:
    shown = sorted(names)[:limit]
    return ", ".join(shown) + (", …" if len(names) > limit else "")
