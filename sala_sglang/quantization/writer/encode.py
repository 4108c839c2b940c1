"""Weights rounded to the values of a scheme, and the tensors that files have of them."""

import torch

from sala_sglang.quantization.formats import FP8_BLOCK, Float8, PackedIntegers

E4M3_LARGEST = torch.finfo(torch.float8_e4m3fn).max
# Parts of the largest weight of a group that its largest code may stand for: smaller steps round the many better, and
# cut off the few.
SHRINKS = [1 - 0.025 * step for step in range(17)]


def encode_float8(weight: torch.Tensor, scheme: Float8) -> dict[str, torch.Tensor]:
    """Tensors by their suffixes of a weight [N, K], with a scale per output channel or block."""
    weight = weight.float()
    if scheme.scales == "channel":
        codes, scales = _e4m3(weight, weight.abs().amax(1, keepdim=True))
    else:
        blocks = weight.unflatten(0, (-1, FP8_BLOCK)).unflatten(2, (-1, FP8_BLOCK))
        codes, scales = _e4m3(blocks, blocks.abs().amax((1, 3), keepdim=True))
        codes, scales = codes.flatten(2).flatten(0, 1), scales[:, 0, :, 0]
    return {"weight": codes, scheme.suffix: scales}


def _e4m3(weight: torch.Tensor, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = torch.where(largest > 0, largest / E4M3_LARGEST, 1.0)
    return (weight / scales).clamp(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn), scales


def integer_scales(weight: torch.Tensor, scheme: PackedIntegers, importance: torch.Tensor) -> torch.Tensor:
    """Scales [N, K / group] bfloat16 of a weight [N, K], of those tried the ones with the least error.

    importance: [K], what the squared error of a weight of each input counts. The dtype is that of the model, so that
    nothing rounds the scales again when they are loaded.
    """
    grouped = weight.float().unflatten(1, (-1, scheme.group))
    counts = importance.float().unflatten(0, (-1, scheme.group))
    largest = grouped.abs().amax(-1)
    best, scales = torch.full_like(largest, torch.inf), torch.ones_like(largest, dtype=torch.bfloat16)
    for shrink in SHRINKS:
        tried = (largest * (shrink / highest_code(scheme))).bfloat16()
        tried = torch.where(tried > 0, tried, 1.0)
        error = ((round_to_codes(grouped, tried.float()[..., None], scheme) - grouped) ** 2 * counts).sum(-1)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, tried, scales)
    return scales


def round_to_codes(weight: torch.Tensor, step: torch.Tensor, scheme: PackedIntegers) -> torch.Tensor:
    """The nearest multiples of ``step``, as weights; steps are broadcast."""
    highest = highest_code(scheme)
    return (weight / step).round().clamp(-highest - 1, highest) * step


def highest_code(scheme: PackedIntegers) -> int:
    return 2 ** (scheme.bits - 1) - 1


def encode_integers(rounded: torch.Tensor, scales: torch.Tensor, scheme: PackedIntegers) -> dict[str, torch.Tensor]:
    """Tensors by their suffixes of a weight [N, K] whose values are multiples of its ``scales`` [N, K / group]."""
    highest = highest_code(scheme)
    steps = scales.float().repeat_interleave(scheme.group, dim=1)
    codes = (rounded / steps).round().clamp(-highest - 1, highest).long() + highest + 1
    places = 32 // scheme.bits
    shifts = scheme.bits * torch.arange(places, device=codes.device)  # the first code is in the lowest bits
    packed = (codes.unflatten(1, (-1, places)) << shifts).sum(-1).int()
    return {
        "weight_packed": packed,
        "weight_scale": scales,
        "weight_shape": torch.tensor(rounded.shape, dtype=torch.int64),
    }
