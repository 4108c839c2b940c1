"""Floors of serving one request on a card: bytes over its bandwidth, operations over its arithmetic. Computed.

No GPU reaches its data sheet. HOPPER_RATIO says how far from its floors an H200 was measured; nothing says that another
card is as far from its own.
"""

from sala_sglang.cards.data import Card
from sala_sglang.cards.memory import (
    BFLOAT16,
    cache_bytes_per_token,
    compressed_bytes_per_token,
    state_bytes,
    weight_bytes,
)
from sala_sglang.checkpoint.parameter_shapes import tensor_shapes
from sala_sglang.config import SALAConfig

MULTIPLY_ADD = 2  # operations
# Measured time over floor on one H200, random weights, at 131,072 tokens: benchmarks/results/serving/side_by_side.csv.
HOPPER_RATIO = {("prefill", "bf16"): 1.8, ("prefill", "fp8"): 2.2, ("decode", "bf16"): 1.4, ("decode", "fp8"): 1.9}


def decode_bytes(config: SALAConfig, context: int, weights: str, cache: str) -> int:
    """Bytes that a decode step of one request after ``context`` tokens reads and writes."""
    geometry = config.sparse_geometry
    attended = (
        min(context, geometry.selected_blocks * geometry.block_size) if context >= geometry.dense_len else context
    )
    embedding = config.vocab_size * config.hidden_size * BFLOAT16  # one row of it is read
    return (
        weight_bytes(config, weights)
        - embedding
        + 2 * state_bytes(config)
        + attended * cache_bytes_per_token(config, cache)
        + (context * compressed_bytes_per_token(config) if context >= geometry.dense_len else 0)
    )


def decode_ms(config: SALAConfig, card: Card, context: int, weights: str, cache: str = "bf16") -> float | None:
    """Milliseconds that a token takes at least; None where the bandwidth is not known."""
    if card.bandwidth_gb_per_s is None:
        return None
    return decode_bytes(config, context, weights, cache) / card.bandwidth_gb_per_s / 1e6


def linear_operations(config: SALAConfig, tokens: int) -> int:
    """Of the matrices of all layers; the head computes a row."""
    outside = "model.embed_tokens.weight", "lm_head.weight"
    matrices = (shape for name, shape in tensor_shapes(config).items() if len(shape) == 2 and name not in outside)
    return MULTIPLY_ADD * tokens * sum(rows * columns for rows, columns in matrices)


def attention_operations(config: SALAConfig, tokens: int) -> int:
    """Of block scores, attention and lightning attention of a prompt, summed over its rows."""
    geometry, sparse = config.sparse_geometry, len(config.full_attention_layer_ids)
    width = config.num_attention_heads * config.head_dim
    selected = geometry.selected_blocks * geometry.block_size
    if tokens < geometry.dense_len:
        scored, attended = 0, tokens**2 // 2
    else:
        # Row i has i / stride windows of the finer kind and of the coarser one, and attends to min(i, selected) tokens;
        # sums over i. Rows that take every block score none.
        scored = (tokens**2 - min(tokens, selected) ** 2) // 2
        attended = min(tokens, selected) ** 2 // 2 + max(tokens - selected, 0) * selected
    windows = scored // geometry.kernel_stride + scored // geometry.coarse_stride
    lightning = 2 * config.lightning_nh * config.lightning_head_dim**2 * tokens  # a state's update, and its output
    layers = len(config.lightning_layer_ids)
    return MULTIPLY_ADD * (sparse * width * (windows + 2 * attended) + layers * lightning)


def first_token_s(config: SALAConfig, card: Card, tokens: int, weights: str) -> float | None:
    """Seconds that the first token after a prompt takes at least; None where the arithmetic is not known."""
    if card.bfloat16_tflops is None:
        return None
    products = card.fp8_tflops if weights == "fp8" and card.fp8_tflops else card.bfloat16_tflops
    linear, attention = linear_operations(config, tokens), attention_operations(config, tokens)
    return linear / products / 1e12 + attention / card.bfloat16_tflops / 1e12
