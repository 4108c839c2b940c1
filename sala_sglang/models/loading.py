"""Loading of released tensors into the merged, sharded parameters of the served model."""

from collections.abc import Iterable

import torch
from sglang.srt.model_loader.weight_utils import default_weight_loader
from sglang.srt.runtime_context import get_parallel
from torch import nn

from sala_sglang.checkpoint.parameter_shapes import tensor_shapes
from sala_sglang.config import SALAConfig
from sala_sglang.models.merged_projections import copy_kv_heads, kv_copies, merged_runs
from sala_sglang.models.pipeline import Stage
from sala_sglang.quantization.kv_scales import place_scale, scale_names
from sala_sglang.quantization.placement import Part, place
from sala_sglang.quantization.plan import WEIGHT, Expected, QuantizationPlan, is_split_by_inputs, some
from sala_sglang.quantization.scheme import Scheme


class WeightLoader:
    """Places tensors by their released names.

    The first load must fill every parameter of the model; later ones (weight updates of a running server) may bring
    any part. plan: of a quantised checkpoint. stage: what of the model is here; tensors of other stages are left out.
    complete: whether the parameters have been filled, here or by a loader of SGLang that writes them itself.
    """

    def __init__(self, config: SALAConfig, plan: QuantizationPlan | None, stage: Stage) -> None:
        self.config, self.stage = config, stage
        self.shapes = tensor_shapes(config)
        self.schemes: dict[str, Scheme] = plan.schemes if plan else {}
        self.expected = plan.tensors() if plan else {name: Expected((), shape) for name, shape in self.shapes.items()}
        self.kv_scales = scale_names(config)
        self.complete = False

    def load(self, model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Place ``weights``, pairs of a released name and its tensor.

        Raises ValueError naming tensors that are unknown, missing, given twice, of the wrong shape, or of a dtype that
        their parameter cannot take, and parameters that no tensor fills. SGLang's own copies would cast 16 bits to
        integers without a word, and leave scales that the files lack as memory was.
        """
        # SGLang wraps a layer with LoRA: its parameters are those of `base_layer` then.
        parameters = {name.replace(".base_layer.", "."): value for name, value in model.named_parameters()}
        seen: set[str] = set()
        filled: set[str] = set()
        for name, tensor in weights:
            if name in seen:
                raise ValueError(f"the checkpoint has {name} twice")
            seen.add(name)
            if name not in self.expected and name not in self.kv_scales:
                raise ValueError(f"the checkpoint has an unknown tensor: {name}")
            if not self.stage.has_tensor(name):
                continue
            if name in self.kv_scales:
                ranks, rank = get_parallel().attn_tp_size, get_parallel().attn_tp_rank
                place_scale(dict(model.named_modules()), self.config, name, tensor, rank, ranks)
                continue
            linear, suffix = name.rsplit(".", 1)
            if linear in self.schemes:
                filled.add(self._place_quantised(parameters, linear, suffix, tensor, filled))
            else:
                filled.add(self._place(parameters, name, tensor))
        if not self.complete:
            expected = {name for name in self.expected if self.stage.has_tensor(name)}
            self._check_all(parameters.keys() - filled, expected - seen)
        self.complete = True

    def _check_all(self, unfilled: set[str], missing: set[str]) -> None:
        for name in [name for name in missing if self.expected[name].optional]:
            missing.remove(name)
            unfilled.discard(self._quantised_target(*name.rsplit(".", 1)))
        if missing:
            raise ValueError(f"the checkpoint lacks {len(missing)} tensors: {some(missing)}")
        if unfilled:
            raise ValueError(f"no tensor of the checkpoint fills {len(unfilled)} parameters: {some(unfilled)}")

    def _place(self, parameters: dict, name: str, tensor: torch.Tensor) -> str:
        """Copy a released tensor to where it belongs, and return the parameter's name."""
        expected = self.expected[name].shape
        if tuple(tensor.shape) != expected:
            raise ValueError(f"the checkpoint's {name} has shape {list(tensor.shape)}, expected {list(expected)}")
        linear = name.removesuffix(WEIGHT)
        module, parts = self._module(linear)
        target = module + name.removeprefix(linear)
        parameter = parameters[target]
        if _dtype_class(tensor.dtype) != _dtype_class(parameter.dtype):
            raise ValueError(f"the checkpoint's {name} is {tensor.dtype}, and its parameter {parameter.dtype}")
        if not parts:
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
            return target
        copies = self._copies(linear, get_parallel().attn_tp_size)
        tensor = copy_kv_heads(tensor, self.config.head_dim, copies) if copies > 1 else tensor
        parameter.weight_loader(parameter, tensor, parts.index(linear))
        return target

    def _place_quantised(
        self, parameters: dict, linear: str, suffix: str, tensor: torch.Tensor, filled: set[str]
    ) -> str:
        """The same for a tensor of a quantised layer; ``filled`` has the parameters of earlier ones."""
        name, scheme = f"{linear}.{suffix}", self.schemes[linear]
        self.expected[name].check(name, tensor.dtype, tuple(tensor.shape))
        scheme.check_values(suffix, tensor, linear, self.shapes[linear + WEIGHT])
        target, stored = self._quantised_target(linear, suffix), scheme.stored()[suffix]
        parameter = parameters[target]
        if _dtype_class(tensor.dtype) != _dtype_class(parameter.dtype):
            raise ValueError(f"the checkpoint's {name} is {tensor.dtype}, and its parameter {parameter.dtype}")
        try:
            place(parameter, stored, tensor, self._part(linear), first=target not in filled)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"the checkpoint's {name}: {error}") from error
        return target

    def _quantised_target(self, linear: str, suffix: str) -> str:
        parameter = self.schemes[linear].stored()[suffix].parameter
        return f"{self._module(linear)[0]}.{parameter or suffix}"

    def _part(self, linear: str) -> Part:
        """What this rank has of a released linear layer, and where."""
        ranks, rank = get_parallel().attn_tp_size, get_parallel().attn_tp_rank
        outputs, inputs = self.shapes[linear + WEIGHT]
        if is_split_by_inputs(linear):
            return Part((0, outputs), (rank * inputs // ranks, inputs // ranks), 0, 0)
        _, parts = self._module(linear)
        index, lengths = parts.index(linear), [self._outputs(part) // ranks for part in parts]
        # Ranks that share a KV head have the same rows.
        begin = rank // self._copies(linear, ranks) * lengths[index]
        return Part((begin, lengths[index]), (0, inputs), sum(lengths[:index]), index)

    def _outputs(self, linear: str) -> int:
        """Outputs of a released layer over all ranks, copies of KV heads included."""
        return self.shapes[linear + WEIGHT][0] * self._copies(linear, get_parallel().attn_tp_size)

    def _module(self, linear: str) -> tuple[str, list[str]]:
        """The layer that has a released one, and the released ones that are merged there, none where it is alone."""
        if not linear.startswith("model.layers."):
            return linear, []
        layer = ".".join(linear.split(".")[:3])
        for module, parts in merged_runs(self._kind(linear), lambda part: self.schemes.get(f"{layer}.{part}")).items():
            released = [f"{layer}.{part}" for part in parts]
            if linear in released:
                return f"{layer}.{module}", released
        return linear, []

    def _copies(self, linear: str, ranks: int) -> int:
        """How many ranks have the same rows of a released layer."""
        return kv_copies(self.config, self._kind(linear), ranks) if linear.endswith((".k_proj", ".v_proj")) else 1

    def _kind(self, name: str) -> str:
        """Kind of the decoder layer that a released tensor belongs to."""
        return self.config.layer_kinds[int(name.split(".")[2])]


def _dtype_class(dtype: torch.dtype) -> torch.dtype:
    """One for all floating-point formats of 16 bits and more, which are cast into each other; else the dtype itself."""
    return torch.float32 if dtype.is_floating_point and dtype.itemsize > 1 else dtype
