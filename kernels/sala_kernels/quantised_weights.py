"""Weights of fewer bits than their rows have: FP8 with scales, and integers of four bits in Marlin's layout."""

from typing import NamedTuple

import torch

SCALE_BLOCK = 128  # outputs and inputs that share a scale of a Float8Weight with scales in blocks
MARLIN_OUTPUTS, MARLIN_INPUTS = 64, 16  # of a tile in Marlin's layout
INT4_INPUTS = 64  # inputs that kernels take at a time; a group is a multiple of it
CODE_BITS, WORD_CODES = 4, 8


class Float8Weight(NamedTuple):
    """A weight ``codes · scales`` of e4m3.

    codes: [N, K], dtype float8_e4m3fn, rows contiguous.
    scales: [N] float32, one for each output, which may be expanded from one of them all; or [N/128, K/128] float32,
        rounded up, one for each block of 128 outputs and 128 inputs.

    >>> Float8Weight(torch.ones(2, 3).to(torch.float8_e4m3fn), torch.tensor([1.0, 0.5])).dequantize()
    tensor([[1.0000, 1.0000, 1.0000],
            [0.5000, 0.5000, 0.5000]])
    """

    codes: torch.Tensor
    scales: torch.Tensor

    @property
    def outputs(self) -> int:
        """N."""
        return self.codes.shape[0]

    def dequantize(self) -> torch.Tensor:
        """The weight, [N, K] float32."""
        scales = self.scales[:, None]
        if self.scales.ndim == 2:
            rows = self.scales.repeat_interleave(SCALE_BLOCK, dim=0)[: self.codes.shape[0]]
            scales = rows.repeat_interleave(SCALE_BLOCK, dim=1)[:, : self.codes.shape[1]]
        return self.codes.float() * scales


class Int4Weight(NamedTuple):
    """A weight ``(code - zero) · scale`` of codes from 0 to 15, with a scale per output and group of inputs.

    The layout is Marlin's, which SGLang's GPTQ, AWQ and compressed-tensors methods have in memory after loading: the
    words of a tile of 16 inputs and 64 outputs hold what its lanes multiply. ``int4_weight`` makes it.

    words: [K/16, 2·N] int32, eight codes each.
    scales: [groups, N] of a floating dtype, the outputs of a tile in the order of its words.
    zeros: [groups, N/8] int32, a zero per scale in the same order; None where all are 8.

    >>> weight = int4_weight(torch.full((64, 64), 10), torch.ones(64, 1))
    >>> weight.words.shape, weight.dequantize().unique()
    (torch.Size([4, 128]), tensor([2.]))
    """

    words: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None

    @property
    def outputs(self) -> int:
        """N."""
        return self.scales.shape[1]

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.words.shape[0] * MARLIN_INPUTS // self.scales.shape[0]

    def dequantize(self) -> torch.Tensor:
        """The weight, [N, K] float32, or float64 where the scales are."""
        codes = _codes(self.words).view(self.words.shape[0], -1, 8, 4, 4, 2, 2, 2)
        # Input tiles, output tiles; column, pair of inputs, 16 outputs; odd input, 8 outputs, 8 inputs.
        codes = codes.permute(1, 4, 6, 2, 0, 7, 3, 5).reshape(self.outputs, -1)
        zeros = torch.full_like(self.scales, 8)
        if self.zeros is not None:
            zeros = _codes(self.zeros).unflatten(-1, (2, 4)).transpose(-1, -2).flatten(1).to(zeros)
        zeros, scales = (_in_order(each).repeat_interleave(self.group, dim=1) for each in (zeros, self.scales))
        work = torch.promote_types(scales.dtype, torch.float32)
        return (codes - zeros).to(work) * scales.to(work)


Weight = torch.Tensor | Float8Weight | Int4Weight


def int4_weight(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None = None) -> Int4Weight:
    """Codes, scales and zeros in Marlin's layout.

    codes: [N, K] integers from 0 to 15, N a multiple of 64 and K of 16.
    scales: [N, groups] of a floating dtype.
    zeros: [N, groups] integers from 0 to 15; all of them are 8 without.

    >>> int4_weight(torch.arange(64)[:, None].expand(-1, 64) % 16, torch.ones(64, 1)).dequantize()[:, 0][6:10]
    tensor([-2., -1.,  0.,  1.])
    """
    outputs, inputs = codes.shape
    tiles = codes.reshape(outputs // MARLIN_OUTPUTS, 4, 2, 8, inputs // MARLIN_INPUTS, 2, 4, 2)
    words = _words(tiles.permute(4, 0, 3, 6, 1, 7, 2, 5)).view(inputs // MARLIN_INPUTS, 2 * outputs)
    packed = None
    if zeros is not None:
        pairs = _in_tiles(zeros).unflatten(1, (-1, 4, 2)).transpose(-1, -2)
        packed = _words(pairs.reshape(zeros.shape[1], -1, 1, WORD_CODES)).view(zeros.shape[1], -1)
    return Int4Weight(words, _in_tiles(scales).contiguous(), packed)


def _codes(words: torch.Tensor) -> torch.Tensor:
    """The codes of int32 words [...]: [..., 8], the lowest bits first."""
    shifts = torch.arange(0, 32, CODE_BITS, dtype=torch.int32, device=words.device)
    return words[..., None] >> shifts & 15


def _words(codes: torch.Tensor) -> torch.Tensor:
    """Words of the last eight codes [..., 8], or as many along the last dimensions; the inverse of ``_codes``."""
    codes = codes.reshape(-1, WORD_CODES).long()
    shifts = torch.arange(0, 32, CODE_BITS, device=codes.device)
    return (codes << shifts).sum(-1).to(torch.uint32).view(torch.int32)


def _in_tiles(each: torch.Tensor) -> torch.Tensor:
    """Values [N, groups] in the order in which the lanes of a tile take its outputs: [groups, N]."""
    outputs, groups = each.shape
    return each.reshape(outputs // MARLIN_OUTPUTS, 4, 2, 8, groups).permute(4, 0, 3, 1, 2).reshape(groups, outputs)


def _in_order(each: torch.Tensor) -> torch.Tensor:
    """The inverse of ``_in_tiles``."""
    groups, outputs = each.shape
    return each.reshape(groups, outputs // MARLIN_OUTPUTS, 8, 4, 2).permute(1, 3, 4, 2, 0).reshape(outputs, groups)
