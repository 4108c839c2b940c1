"""What a format of quantised weights has to say of a linear layer: its tensors, their geometry, and its weight."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Axis:
    """One dimension of a tensor: an entry for every ``step`` outputs or inputs of the layer, or ``size`` entries."""

    of: str = ""
    step: int = 1
    size: int = 1

    def length(self, outputs: int, inputs: int) -> int:
        features = {"outputs": outputs, "inputs": inputs}
        return features[self.of] // self.step if self.of else self.size


def outputs(step: int = 1) -> Axis:
    return Axis("outputs", step)


def inputs(step: int = 1) -> Axis:
    return Axis("inputs", step)


@dataclass(frozen=True)
class Stored:
    """A tensor of a quantised layer, as files have it.

    dtypes: those that files may have; parameters of 16 bits or more take wider and narrower floats. axes: its
    dimensions, none for a scalar. parameter: what it is called in SGLang's layer, if otherwise. scale: whether values
    must be finite and not negative. shared: equal in all layers of a merged one, which has it once. optional: whether
    files may leave it out. whole: whether a rank has it for all inputs, also where it multiplies a part of them.
    """

    dtypes: tuple[torch.dtype, ...]
    axes: tuple[Axis, ...]
    parameter: str = ""
    scale: bool = False
    shared: bool = False
    optional: bool = False
    whole: bool = False

    def shape(self, outputs: int, inputs: int) -> tuple[int, ...]:
        return tuple(axis.length(outputs, inputs) for axis in self.axes)

    def axis(self, of: str) -> tuple[int, int] | None:
        """Dimension along the ``outputs`` or ``inputs`` and its step; None where there is none."""
        return next(((index, axis.step) for index, axis in enumerate(self.axes) if axis.of == of), None)


@dataclass(frozen=True)
class Multiples:
    """What the outputs and inputs of a layer on a rank must be multiples of, and for whom."""

    outputs: int = 1
    inputs: int = 1
    reason: str = "the format"


@dataclass(frozen=True)
class Scheme(ABC):
    """How the weight of a linear layer is stored. Equal schemes can share one merged layer."""

    name: ClassVar[str]

    @abstractmethod
    def stored(self) -> dict[str, Stored]:
        """Tensors by the suffix of their names."""

    @abstractmethod
    def dequantize(self, tensors: dict[str, torch.Tensor], widths: list[int]) -> torch.Tensor:
        """Weight [N, K] float32 of tensors by their suffixes.

        widths: outputs of the layers that are merged here, which sum up to N. Scalars have one entry for each.
        """

    def check_values(self, suffix: str, tensor: torch.Tensor, layer: str, shape: tuple[int, ...]) -> None:
        """Raise ValueError for values of a tensor of ``layer`` that the products would not look at.

        shape: [N, K] of the weight.
        """
        if self.stored()[suffix].scale and not (tensor.isfinite().all() and (tensor >= 0).all()):
            raise ValueError(f"the checkpoint's {layer}.{suffix} has values that are not finite, or negative")
        self.check_codes(suffix, tensor, layer, shape)

    def check_codes(self, suffix: str, tensor: torch.Tensor, layer: str, shape: tuple[int, ...]) -> None:
        """The same for what is particular to a format."""
        return

    def multiples(self) -> Multiples:
        """What a rank's part of a layer must be divisible by so that the tensors can be cut."""
        found = {"outputs": 1, "inputs": 1}
        for one in self.stored().values():
            for axis in one.axes:
                if axis.of and not (one.whole and axis.of == "inputs"):
                    found[axis.of] = max(found[axis.of], axis.step)
        return Multiples(found["outputs"], found["inputs"])

    def kernel_multiples(self) -> Multiples:
        """What SGLang's products on GPUs ask for besides."""
        return Multiples()


def unpack(packed: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Unsigned integers of ``bits`` out of int32, the lowest bits first, along ``dim``: that times 32 / bits longer."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    moved = packed.movedim(dim, -1).unsqueeze(-1)
    codes = (moved >> shifts) & (2**bits - 1)
    return codes.flatten(-2).movedim(-1, dim)
