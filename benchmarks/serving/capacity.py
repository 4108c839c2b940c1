"""Memory that serving MiniCPM-SALA on one GPU takes, computed from shapes, as CSV.

    python -m benchmarks.serving.capacity --context 1048576 --requests 1 \\
        --output benchmarks/results/serving/capacity.csv

Released sizes in bfloat16, tensor-parallel size 1, SGLang's prefix cache and overlap scheduling on; behind the sum what
keys and values take in FP8 (--kv-cache-dtype fp8_e4m3), and the sum with these. What depends on the
machine is left out: CUDA's context and library workspaces, captured graphs, and what the allocator leaves unused.
"""

import argparse
import math
from pathlib import Path

from sala_kernels.select_blocks.triton import SCORE_BYTES

from benchmarks.common import results_file
from sala_sglang.checkpoint.parameter_shapes import tensor_shapes
from sala_sglang.config import SALAConfig
from sala_sglang.environment import DEFAULT_SNAPSHOT_SPACING

BFLOAT16, FLOAT32, INT32 = 2, 4, 4  # bytes
KEYS_VALUES = "keys and values"
IN_FP8 = 2  # times as many in the same bytes
BESIDE = f"{KEYS_VALUES} in FP8 instead", "sum with these"
COLUMNS = "context_tokens", "requests", "chunk_tokens", "what", "bytes"
STATES_PER_REQUEST = 5  # SGLang's number: three, and two that take snapshots by turns


def memory_bytes(config: SALAConfig, context: int, requests: int, chunk: int) -> dict[str, int]:
    """Bytes by what takes them: ``requests`` of ``context`` tokens at once, prefill chunks of ``chunk`` tokens."""
    sparse, geometry = len(config.full_attention_layer_ids), config.sparse_geometry
    key_heads, head_dim = config.num_key_value_heads, config.head_dim
    compressed = geometry.compressed_bytes_per_token(sparse, key_heads, head_dim, BFLOAT16)
    state = len(config.lightning_layer_ids) * config.lightning_nh * config.lightning_head_dim**2 * FLOAT32
    tokens = requests * context
    return {
        "weights": sum(math.prod(shape) for shape in tensor_shapes(config).values()) * BFLOAT16,
        KEYS_VALUES: tokens * 2 * sparse * key_heads * head_dim * BFLOAT16,
        "compressed keys": tokens * compressed,
        "states of running requests": requests * STATES_PER_REQUEST * state,
        "snapshots of their prompts": requests * (context // DEFAULT_SNAPSHOT_SPACING) * state,
        "table of token slots": tokens * INT32,
        "block scores, at most": SCORE_BYTES,
        "partial attention of a chunk": chunk * config.num_attention_heads * head_dim * FLOAT32,
        "MLP activations of a chunk": 3 * chunk * config.intermediate_size * BFLOAT16,
    }


def with_sums(sizes: dict[str, int]) -> dict[str, int]:
    """``sizes``, their sum, and the same with keys and values in FP8."""
    in_full, total = sizes[KEYS_VALUES], sum(sizes.values())
    in_fp8 = in_full // IN_FP8
    return sizes | {"sum": total} | dict(zip(BESIDE, (in_fp8, total - in_full + in_fp8), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, required=True, help="tokens of a request")
    parser.add_argument("--requests", type=int, required=True, help="requests at once")
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of a prefill chunk (default: 8192)")
    parser.add_argument("--output", type=Path, required=True, help="CSV file; rows are appended")
    options = parser.parse_args()
    sizes = with_sums(memory_bytes(SALAConfig(), options.context, options.requests, options.chunk))
    for what, size in sizes.items():
        row = options.context, options.requests, options.chunk, what, size
        results_file.append(options.output, dict(zip(COLUMNS, row, strict=True)), COLUMNS)
        print(f"{what:28} {size / 2**30:8.3f} GiB")


if __name__ == "__main__":
    main()
