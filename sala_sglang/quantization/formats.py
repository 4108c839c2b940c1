"""The formats of quantised weights that are served."""

from dataclasses import dataclass

import torch

from sala_sglang.quantization.scheme import FLOATS, Axis, Multiples, Scheme, Stored, inputs, outputs, unpack

FP8_BLOCK = 128
# Marlin computes tiles of 64 outputs and 128 inputs.
MARLIN = Multiples(64, 128, "Marlin")
INT32, FP8, INT8 = (torch.int32,), (torch.float8_e4m3fn,), (torch.int8,)
# Packed columns of AWQ hold the outputs of a group of eight in this order.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class GPTQ(Scheme):
    """Symmetric integers with a scale per ``group`` of inputs, -1 for all of them, as GPTQ's tools write them.

    act_order: groups are of inputs that ``g_idx`` names, and not of neighbours.
    """

    bits: int
    group: int
    act_order: bool
    name = "GPTQ"

    def stored(self) -> dict[str, Stored]:
        pack = 32 // self.bits
        groups = Axis() if self.group == -1 else inputs(self.group)
        whole = self.act_order  # the inputs of a rank may be of any group
        return {
            "qweight": Stored(INT32, (inputs(pack), outputs())),
            "scales": Stored(FLOATS, (groups, outputs()), scale=True, whole=whole),
            "qzeros": Stored(INT32, (groups, outputs(pack)), whole=whole),
            "g_idx": Stored(INT32, (inputs(),), shared=True, optional=not self.act_order),
        }

    def dequantize(self, tensors: dict[str, torch.Tensor], widths: list[int]) -> torch.Tensor:
        codes = unpack(tensors["qweight"], self.bits, 0) - 2 ** (self.bits - 1)
        rows = codes.shape[0]
        group = rows if self.group == -1 else self.group
        index = tensors["g_idx"].long() if self.act_order else torch.arange(rows, device=codes.device) // group
        return (codes * tensors["scales"].float()[index]).t()

    def check_codes(self, suffix: str, tensor: torch.Tensor, layer: str, shape: tuple[int, ...]) -> None:
        if suffix == "qzeros":
            zero = 2 ** (self.bits - 1)  # files of version 1 have one less
            if not ((found := unpack(tensor, self.bits, 1)) == zero).all() and not (found == zero - 1).all():
                raise ValueError(f"the checkpoint's {layer}.qzeros are not those of symmetric weights, which sym says")
        if suffix == "g_idx" and not self.act_order:
            group = len(tensor) if self.group == -1 else self.group
            if not torch.equal(tensor.long(), torch.arange(len(tensor), device=tensor.device) // group):
                raise ValueError(f"the checkpoint's {layer}.g_idx has an order of inputs, which desc_act denies")

    def kernel_multiples(self) -> Multiples:
        return MARLIN


@dataclass(frozen=True)
class AWQ(Scheme):
    """Integers of four bits with a scale and a zero point per ``group`` of inputs, as AutoAWQ writes them."""

    group: int
    name = "AWQ"

    def stored(self) -> dict[str, Stored]:
        return {
            "qweight": Stored(INT32, (inputs(), outputs(8))),
            "qzeros": Stored(INT32, (inputs(self.group), outputs(8))),
            "scales": Stored(FLOATS, (inputs(self.group), outputs()), scale=True),
        }

    def codes(self, packed: torch.Tensor) -> torch.Tensor:
        """Codes or zero points of packed ones, in order of the outputs."""
        order = torch.tensor(AWQ_ORDER, device=packed.device).argsort()
        return unpack(packed, 4, 1).unflatten(1, (-1, 8))[:, :, order].flatten(1)

    def dequantize(self, tensors: dict[str, torch.Tensor], widths: list[int]) -> torch.Tensor:
        codes, zeros = (self.codes(tensors[name]) for name in ("qweight", "qzeros"))
        zeros, scales = (rows.repeat_interleave(self.group, dim=0) for rows in (zeros, tensors["scales"].float()))
        return ((codes - zeros) * scales).t()

    def kernel_multiples(self) -> Multiples:
        return MARLIN


@dataclass(frozen=True)
class PackedIntegers(Scheme):
    """Symmetric integers with a scale per ``group`` of inputs, -1 for all: pack-quantized of compressed-tensors."""

    bits: int
    group: int
    name = "compressed-tensors pack-quantized"

    def stored(self) -> dict[str, Stored]:
        groups = Axis() if self.group == -1 else inputs(self.group)
        return {
            "weight_packed": Stored(INT32, (outputs(), inputs(32 // self.bits))),
            "weight_scale": Stored(FLOATS, (outputs(), groups), scale=True),
            "weight_shape": Stored((torch.int64, torch.int32), (Axis(size=2),), shared=True),
        }

    def dequantize(self, tensors: dict[str, torch.Tensor], widths: list[int]) -> torch.Tensor:
        codes = unpack(tensors["weight_packed"], self.bits, 1) - 2 ** (self.bits - 1)
        group = codes.shape[1] if self.group == -1 else self.group
        return codes * tensors["weight_scale"].float().repeat_interleave(group, dim=1)

    def check_codes(self, suffix: str, tensor: torch.Tensor, layer: str, shape: tuple[int, ...]) -> None:
        if suffix == "weight_shape" and tensor.tolist() != list(shape):
            raise ValueError(f"the checkpoint's {layer}.weight_shape is {tensor.tolist()}, expected {list(shape)}")

    def kernel_multiples(self) -> Multiples:
        return MARLIN


@dataclass(frozen=True)
class Float8(Scheme):
    """e4m3 with a scale per ``tensor``, output ``channel`` or ``block`` of 128 × 128.

    static: activations have a scale of their own in the file, else one of every token. suffix: of the scales' names.
    """

    scales: str
    static: bool
    suffix: str = "weight_scale"
    name = "FP8"

    def stored(self) -> dict[str, Stored]:
        axes = {
            "tensor": (),
            "channel": (outputs(), Axis()),
            "block": (outputs(FP8_BLOCK), inputs(FP8_BLOCK)),
        }[self.scales]
        parameter = "weight_scale_inv" if self.scales == "block" else ""
        found = {
            "weight": Stored(FP8, (outputs(), inputs())),
            self.suffix: Stored(FLOATS, axes, parameter, scale=True),
        }
        return found | ({"input_scale": Stored(FLOATS, (), scale=True)} if self.static else {})

    def dequantize(self, tensors: dict[str, torch.Tensor], widths: list[int]) -> torch.Tensor:
        weight, scales = tensors["weight"].float(), tensors[self.suffix].float()
        if self.scales == "tensor":
            scales = scales.repeat_interleave(torch.tensor(widths, device=scales.device))[:, None]
        elif self.scales == "block":
            for dim in (0, 1):
                scales = scales.repeat_interleave(FP8_BLOCK, dim=dim)
        return weight * scales

    def kernel_multiples(self) -> Multiples:
        return Multiples(16, 16, "CUTLASS")


@dataclass(frozen=True)
class Int8(Scheme):
    """Integers of eight bits with a scale per output channel, for activations of eight bits."""

    name = "int8"

    def stored(self) -> dict[str, Stored]:
        return {
            "weight": Stored(INT8, (outputs(), inputs())),
            "weight_scale": Stored(FLOATS, (outputs(), Axis()), scale=True),
        }

    def dequantize(self, tensors: dict[str, torch.Tensor], widths: list[int]) -> torch.Tensor:
        return tensors["weight"].float() * tensors["weight_scale"].float()

    def kernel_multiples(self) -> Multiples:
        return Multiples(16, 16, "CUTLASS")
