"""The layout of an Int4Weight is Marlin's."""

import torch
from sala_kernels.quantised_weights import int4_weight
from sglang.srt.layers.quantization import marlin_utils
from sglang.srt.layers.quantization.moe_wna16 import get_weight_perm


def test_layout_is_that_of_marlin():
    """By the permutations in SGLang's own code, which its kernels on GPUs follow."""
    outputs, inputs, groups = 128, 256, 2
    codes, scales = torch.randint(0, 16, (outputs, inputs)), torch.rand(outputs, groups)
    zeros = torch.randint(0, 16, (outputs, groups))
    weight = int4_weight(codes, scales, zeros)
    tiles = codes.T.reshape(inputs // 16, 16, outputs // 16, 16).transpose(1, 2)
    tiles = tiles.reshape(-1, 1024)[:, get_weight_perm(4)].reshape(inputs // 16, -1)
    words = torch.stack([tiles[:, i::8] << 4 * i for i in range(8)]).sum(0)
    assert torch.equal(weight.words, words.to(torch.uint32).view(torch.int32))
    assert torch.equal(weight.scales, marlin_utils.marlin_permute_scales(scales.T.contiguous(), inputs, outputs, 128))
    assert weight.zeros is not None
    assert torch.equal(weight.zeros, marlin_utils.marlin_zero_points(zeros.T.contiguous(), groups, outputs, 4).cpu())
