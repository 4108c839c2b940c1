"""Where the tensors of quantised layers go: a rank's part of a tensor into its part of a merged parameter."""

from dataclasses import dataclass

import torch

from sala_sglang.quantization.scheme import Stored


@dataclass(frozen=True)
class Part:
    """The part of a released layer that a rank holds, and where it is in the layer that merges it with others.

    outputs, inputs: first one and number of the released layer's. offset: outputs of the merged layer before it. index:
    its number there.
    """

    outputs: tuple[int, int]
    inputs: tuple[int, int]
    offset: int
    index: int


def place(parameter: torch.Tensor, stored: Stored, tensor: torch.Tensor, part: Part, first: bool) -> None:
    """Copy what the rank holds of ``tensor`` into ``parameter``.

    first: whether no other layer has filled a shared parameter. Raises ValueError where one that others share has other
    values, and RuntimeError where the parameter has not the geometry that SGLang gives this format.
    """
    target = parameter.data
    if not stored.axes:
        target, source = target[part.index], tensor.reshape(())
    else:
        source = _cut(tensor, stored, part)
        if (found := stored.axis("outputs")) is not None:
            axis, step = found
            begin = part.offset // step
            target = target.movedim(axis, 0)[begin : begin + part.outputs[1] // step].movedim(0, axis)
    if target.shape != source.shape:
        raise RuntimeError(f"SGLang has room for {list(target.shape)} in the place of {list(source.shape)}")
    if stored.shared and stored.axis("inputs") and not first and not torch.equal(target, source.to(target.device)):
        raise ValueError("differs from that of a layer with the same inputs; allowed: one order of inputs for both")
    target.copy_(source)


def _cut(tensor: torch.Tensor, stored: Stored, part: Part) -> torch.Tensor:
    for of, (begin, length) in (("outputs", part.outputs), ("inputs", part.inputs)):
        found = stored.axis(of)
        if found is None or (stored.whole and of == "inputs"):
            continue
        axis, step = found
        tensor = tensor.narrow(axis, begin // step, length // step)
    return tensor
