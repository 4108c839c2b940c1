"""Which scheme every released linear layer has, by the configuration and the files, which have to agree."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sala_sglang.checkpoint.parameter_shapes import Shape, tensor_shapes
from sala_sglang.config import SALAConfig
from sala_sglang.quantization.checkpoint_files import Header, read_headers
from sala_sglang.quantization.configuration import Said, make_rules
from sala_sglang.quantization.kv_scales import check_scale, scale_names
from sala_sglang.quantization.scheme import FLOATS, Scheme

WEIGHT = ".weight"
SPLIT_BY_INPUTS = ("o_proj", "down_proj")  # by tensor parallelism; all others by outputs


@dataclass(frozen=True)
class Expected:
    """A tensor that a checkpoint has, or may have."""

    dtypes: tuple[torch.dtype, ...]
    shape: Shape
    optional: bool = False

    def check(self, name: str, dtype: torch.dtype | str, shape: Shape) -> None:
        """Raise ValueError for another dtype or shape. A scalar may be a list of one."""
        if dtype not in self.dtypes:
            raise ValueError(f"the checkpoint's {name} is {dtype}; allowed: {', '.join(map(str, self.dtypes))}")
        if shape != self.shape and (self.shape, shape) != ((), (1,)):
            raise ValueError(f"the checkpoint's {name} has shape {list(shape)}, expected {list(self.shape)}")


class QuantizationPlan:
    """The schemes of a checkpoint's linear layers, by their released names; those with 16 bits are in none.

    Raises ValueError naming field or tensor, value, and what is allowed, where the checkpoint cannot be served, or its
    configuration and its files disagree.
    """

    def __init__(self, config: SALAConfig, given: Mapping[str, Any], headers: Mapping[str, Header]):
        self.shapes = tensor_shapes(config)
        self.config = config
        rules = make_rules(given)
        self.names = rules.names
        self.method = given["quant_method"]
        self.schemes: dict[str, Scheme] = {}
        for linear in linears(self.shapes):
            scheme = _agreed(linear, rules.of(linear), headers)
            if scheme is not None:
                self.schemes[linear] = scheme
        if not self.schemes:
            raise ValueError(
                f"MiniCPM-SALA: quantization_config.quant_method = {self.method!r}, and no linear layer of the files "
                "is quantised; allowed: a checkpoint without it"
            )
        self._check_headers(headers)

    def tensors(self) -> dict[str, Expected]:
        """Every tensor of the checkpoint by its name."""
        found: dict[str, Expected] = {}
        for name, shape in self.shapes.items():
            linear = name.removesuffix(WEIGHT)
            if linear not in self.schemes:
                found[name] = Expected(FLOATS, shape)
                continue
            for suffix, stored in self.schemes[linear].stored().items():
                found[f"{linear}.{suffix}"] = Expected(stored.dtypes, stored.shape(*shape), stored.optional)
        return found

    def _check_headers(self, headers: Mapping[str, Header]) -> None:
        expected = self.tensors()
        scales = {name: headers[name] for name in scale_names(self.config) if name in headers}
        for name, header in scales.items():
            check_scale(name, header.dtype, header.shape, self.config.num_key_value_heads)
        headers = {name: header for name, header in headers.items() if name not in scales}
        if unknown := headers.keys() - expected.keys():
            raise ValueError(f"the checkpoint has {len(unknown)} unknown tensors: {some(unknown)}")
        required = {name for name, one in expected.items() if not one.optional}
        if missing := required - headers.keys():
            raise ValueError(f"the checkpoint lacks {len(missing)} tensors: {some(missing)}")
        for name, header in headers.items():
            expected[name].check(name, header.dtype, header.shape)

    def check_ranks(self, widths: Callable[[str], int], ranks: int, on_gpu: bool) -> None:
        """Raise ValueError for a layer that cannot be cut for ``ranks``, or is too narrow there for its product.

        widths: outputs of a released layer over all ranks, copies of KV heads included.
        """
        for linear, scheme in self.schemes.items():
            outputs, inputs = widths(linear), self.shapes[linear + WEIGHT][1]
            if is_split_by_inputs(linear):
                inputs //= ranks
            else:
                outputs //= ranks
            for need in (scheme.multiples(), *([scheme.kernel_multiples()] if on_gpu else [])):
                if outputs % need.outputs or inputs % need.inputs:
                    raise ValueError(
                        f"MiniCPM-SALA: {linear} in {scheme.name} has {outputs} outputs and {inputs} inputs on each of "
                        f"{ranks} ranks; allowed: multiples of {need.outputs} and {need.inputs} ({need.reason})"
                    )


def linears(shapes: Mapping[str, Shape]) -> list[str]:
    """Released names of the linear layers, without the head."""
    names = (name.removesuffix(WEIGHT) for name, shape in shapes.items() if len(shape) == 2)
    return [name for name in names if name.startswith("model.layers.")]


def is_split_by_inputs(linear: str) -> bool:
    return linear.endswith(SPLIT_BY_INPUTS)


def _agreed(linear: str, said: Said, headers: Mapping[str, Header]) -> Scheme | None:
    """The scheme of a layer of which configuration and files say the same."""
    have = {name: header for name, header in headers.items() if name.startswith(linear + ".")}
    weight = have.get(linear + WEIGHT)
    in_full = weight is not None and weight.dtype in FLOATS
    if said.scheme is None or in_full:
        if in_full and (said.scheme is None or not said.certain):
            return None
        view = f"leaves {linear} in 16 bits" if said.scheme is None else f"makes {linear} {said.scheme.name}"
        shown = some({f"{name} ({header.dtype})" for name, header in have.items()}) or "nothing of it"
        raise ValueError(
            f"MiniCPM-SALA: quantization_config.{said.why} {view}, and the files have {shown}; "
            "allowed: the same in both"
        )
    return said.scheme


def some(names: set[str], limit: int = 8) -> str:
    shown = sorted(names)[:limit]
    return ", ".join(shown) + (", …" if len(names) > limit else "")


def read_plan(config: SALAConfig, given: Mapping[str, Any], folder: Path) -> QuantizationPlan:
    """The plan of the checkpoint in ``folder``; no weight is read for it."""
    return QuantizationPlan(config, given, read_headers(folder))
