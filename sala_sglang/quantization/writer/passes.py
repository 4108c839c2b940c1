"""A model quantised layer by layer, and what that changes in its layers and in its predictions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from sala_sglang.quantization import divergence
from sala_sglang.quantization.divergence import Divergence
from sala_sglang.quantization.formats import Float8, PackedIntegers
from sala_sglang.quantization.layerwise import LayerwiseModel
from sala_sglang.quantization.plan import WEIGHT
from sala_sglang.quantization.scheme import Scheme
from sala_sglang.quantization.weights import CheckpointWeights
from sala_sglang.quantization.writer.encode import encode_float8, encode_integers, integer_scales
from sala_sglang.quantization.writer.hessian import InputMoments, output_error, round_by_inputs

# Linear layers by the one whose inputs they share.
SAME_INPUTS = {
    "self_attn.q_proj": ("q_proj", "k_proj", "v_proj", "o_gate", "z_proj"),
    "self_attn.o_proj": ("o_proj",),
    "mlp.gate_proj": ("gate_proj", "up_proj"),
    "mlp.down_proj": ("down_proj",),
}
HELD_OUT = 4  # every so many texts one is kept from calibration, to measure with
Emit = Callable[[str, torch.Tensor], None]


@dataclass
class Costs:
    """What quantisation changes.

    weights, outputs: relative root mean square error of every linear layer's weight, and of its outputs over the texts
    of the calibration. predictions: those of the quantised model beside those of the model before, in texts that were
    kept from calibration; None without texts.
    """

    weights: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)
    predictions: Divergence | None = None


class Streams:
    """Hidden states of texts on their way through the model.

    calibration: through quantised layers. plain, quantised: of the texts that are kept from it, through the layers as
    they were, and through quantised ones.
    """

    def __init__(self, model: LayerwiseModel, texts: list[list[int]], calibrates: bool):
        self.model = model
        self.kept = texts[HELD_OUT - 1 :: HELD_OUT] if calibrates else texts
        used = [text for number, text in enumerate(texts) if number % HELD_OUT != HELD_OUT - 1] if calibrates else []
        self.calibration = model.embed(used)
        self.plain = model.embed(self.kept)
        self.quantised = list(self.plain)

    def moments(self, layer: nn.Module) -> dict[str, InputMoments]:
        """Of the inputs of every linear layer over the texts of the calibration, if any, by the keys of SAME_INPUTS."""
        if not self.calibration:
            return {}
        found = {name: InputMoments() for name in SAME_INPUTS}
        handles = [
            layer.get_submodule(name).register_forward_pre_hook(lambda _, inputs, one=one: one.add(inputs[0]))
            for name, one in found.items()
        ]
        for hidden in self.calibration:
            self.model.run(layer, hidden)
        for handle in handles:
            handle.remove()
        return found

    def pass_plain(self, layer: nn.Module) -> None:
        self.plain = [self.model.run(layer, hidden) for hidden in self.plain]

    def pass_quantised(self, layer: nn.Module) -> None:
        self.calibration = [self.model.run(layer, hidden) for hidden in self.calibration]
        self.quantised = [self.model.run(layer, hidden) for hidden in self.quantised]

    def predictions(self) -> Divergence | None:
        """Behind the last layer."""
        parts = []
        for text, *hidden in zip(self.kept, self.plain, self.quantised, strict=True):
            tokens, positions = torch.tensor(text), torch.arange(len(text))
            begin = 1
            for first, second in self.model.log_probabilities(*(one[:-1] for one in hidden)):
                rows = slice(begin, begin + len(first))
                parts.append(divergence.of_distributions(first, second, tokens[rows], positions[rows]))
                begin += len(first)
        return divergence.joined(parts) if parts else None


def quantise(
    weights: CheckpointWeights,
    schemes: dict[str, Scheme],
    emit: Emit,
    texts: list[list[int]] | None,
    device: str,
) -> Costs:
    """Quantise the layers of ``schemes`` and hand the tensors of the new checkpoint to ``emit``, in the order of names.

    texts: token ids that the calibration of 4-bit integers goes by, and that show what changes; FP8 needs none, and
    without them takes one weight at a time. device: for the passes, a layer of which is there at a time. Raises
    ValueError naming a weight that is not finite.
    """
    costs = Costs()
    streams = None
    if texts is not None:
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        calibrates = any(isinstance(scheme, PackedIntegers) for scheme in schemes.values())
        streams = Streams(LayerwiseModel(weights, device, dtype), texts, calibrates)
    for index, names in _by_layer(weights):
        if streams is None or index is None:
            for name in names:
                _write(weights, schemes, name, {}, emit, costs, device)
            continue
        layer = streams.model.layer(index)
        moments = streams.moments(layer)
        streams.pass_plain(layer)
        for name in names:
            served = _write(weights, schemes, name, moments, emit, costs, device)
            if served is not None:
                layer.get_parameter(name.removeprefix(f"model.layers.{index}.")).copy_(served)
        streams.pass_quantised(layer)
    if streams:
        costs.predictions = streams.predictions()
    return costs


def _by_layer(weights: CheckpointWeights) -> Iterator[tuple[int | None, list[str]]]:
    """Numbers of decoder layers with the names of their tensors, in order; None for what is in none."""
    layers = [name.split(".")[2] if name.startswith("model.layers.") else None for name in weights.shapes]
    names = list(weights.shapes)
    begin = 0
    for end in range(1, len(names) + 1):
        if end == len(names) or layers[end] != layers[begin]:
            number = layers[begin]
            yield None if number is None else int(number), names[begin:end]
            begin = end


def _write(
    weights: CheckpointWeights,
    schemes: dict[str, Scheme],
    name: str,
    moments: dict[str, InputMoments],
    emit: Emit,
    costs: Costs,
    device: str,
) -> torch.Tensor | None:
    """Hand on a tensor, or those of its layer; returns the weight for which they stand where it is quantised."""
    linear = name.removesuffix(WEIGHT)
    tensor = weights.stored(name)
    if linear not in schemes:
        emit(name, tensor)
        return None
    if not tensor.isfinite().all():
        raise ValueError(f"{name} has values that are not finite")
    last = linear.split(".")[-1]
    source = next(one for one, same in SAME_INPUTS.items() if last in same)
    own = moments[source].mean if moments else None
    weight = tensor.to(device).float()
    encoded = _encode(weight, schemes[linear], own, linear)
    served = schemes[linear].dequantize(encoded, [len(weight)])
    costs.weights[linear] = ((served - weight).norm() / weight.norm()).item()
    if own is not None:
        costs.outputs[linear] = output_error(weight, served, own)
    for suffix, one in encoded.items():
        emit(f"{linear}.{suffix}", one)
    return served


def _encode(weight: torch.Tensor, scheme: Scheme, moments: torch.Tensor | None, linear: str) -> dict[str, torch.Tensor]:
    if isinstance(scheme, Float8):
        return encode_float8(weight, scheme)
    assert isinstance(scheme, PackedIntegers) and moments is not None
    scales = integer_scales(weight, scheme, moments.diagonal())
    try:
        return encode_integers(round_by_inputs(weight, scales, scheme, moments), scales, scheme)
    except torch.linalg.LinAlgError as error:
        raise ValueError(f"{linear}: {error}") from error
