"""What training an EAGLE3 head for the released model takes, computed: ``python -m training.drafts.cost --output CSV``.

Sums over shapes, not measurements. The forward pass of the target is measured on an H200, the rest of a conversation is
taken to run at a rate that large products reach on such a card.
"""

import argparse
from math import prod
from pathlib import Path

import torch

from sala_sglang.checkpoint.parameter_shapes import tensor_shapes
from sala_sglang.config import SALAConfig
from training.drafts.eagle3 import Eagle3Head, head_config
from training.saved_runs import write_rows

# benchmarks/results/training/speed.csv: prefill of random weights, with flash-linear-attention, and its peak of memory.
TARGET_SECONDS = {2048: 0.0841, 8192: 0.4385, 32768: 3.2545}
TARGET_PEAK_MIB = {2048: 18511, 8192: 19349, 32768: 22220}
FLOPS = 300e12  # per second
STEPS = 5
ANSWER_TOKENS = 512  # of each conversation
STATE_BYTES = 4 + 4 + 8  # weight, gradient and AdamW's two averages, float32; Muon has one
MIB = 1 << 20


def head_bytes(target: SALAConfig, tokens: int, vocabulary: int) -> int:
    """What a conversation needs beyond weights: captured and fused states, and of every step what backward reads.

    Captured states are there in 16 bits twice, apart and together; their norms keep them in float32 and in 16 bits.
    Logits exist per step in 16 bits, float32, as log-probabilities and as products with the target's distribution.
    """
    captured = tokens * 3 * target.hidden_size * (2 * 2 + 4 + 2)
    inputs = tokens * (3 * target.hidden_size * (4 + 2) + 2 * target.num_key_value_heads * target.head_dim * 2)
    row = vocabulary * (2 + 3 * 4) + 2 * (8 * target.hidden_size + 3 * target.intermediate_size) * 2
    widened = 2 * (tokens + STEPS * ANSWER_TOKENS) * target.hidden_size * 2  # keys and values for every query head
    return captured + inputs + ANSWER_TOKENS * (STEPS * row + 2 * target.vocab_size * 4) + STEPS * widened


def head_flops(head: Eagle3Head, target: SALAConfig, tokens: int) -> float:
    """Forward and backward: states of all tokens are fused and projected to keys and values, the rest per step."""
    attention = head.midlayer.self_attn
    per_token = sum(x.weight.numel() for x in (head.fc, attention.k_proj, attention.v_proj))
    per_step = sum(parameter.numel() for parameter in head.parameters()) - head.fc.weight.numel()
    scores = 2 * target.num_attention_heads * target.head_dim * (tokens + STEPS * ANSWER_TOKENS)
    return 6.0 * (per_token * tokens + (per_step + scores) * ANSWER_TOKENS * STEPS)


def row(target: SALAConfig, tokens: int, vocabulary: int) -> dict[str, float]:
    with torch.device("meta"):
        head = Eagle3Head(head_config(target, vocabulary, tokens), torch.arange(vocabulary))
    parameters = sum(parameter.numel() for parameter in head.parameters())
    weights = 2 * sum(prod(shape) for shape in tensor_shapes(target).values()) / MIB
    training = (parameters * STATE_BYTES + head_bytes(target, tokens, vocabulary)) / MIB
    return {
        "tokens": tokens,
        "answer_tokens": ANSWER_TOKENS,
        "draft_vocabulary": vocabulary,
        "head_parameters_million": round(parameters / 1e6),
        "target_weights_gib": round(weights / 1024, 1),
        "head_and_optimizer_gib": round(parameters * STATE_BYTES / MIB / 1024, 1),
        "all_gib": round((max(weights, TARGET_PEAK_MIB[tokens]) + training) / 1024, 1),
        "target_seconds": TARGET_SECONDS[tokens],
        "head_seconds": round(head_flops(head, target, tokens) / FLOPS, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="CSV file")
    options = parser.parse_args()
    target = SALAConfig()
    rows = [row(target, tokens, size) for tokens in TARGET_SECONDS for size in (32000, target.vocab_size)]
    write_rows(options.output, rows)


if __name__ == "__main__":
    main()
