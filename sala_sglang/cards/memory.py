"""Memory that serving takes on one GPU, by part: from shapes, and for what shapes do not tell as measured.

Released sizes are those of SALAConfig. tests/cards/test_memory.py compares the sum with peaks that were measured.
"""

import math
from typing import NamedTuple

from sala_sglang.checkpoint.parameter_shapes import tensor_shapes
from sala_sglang.config import SALAConfig
from sala_sglang.environment import DEFAULT_SNAPSHOT_SPACING

MIB = 1 << 20
BFLOAT16, FLOAT32, INT32 = 2, 4, 4  # bytes
STATES_PER_REQUEST = 5  # SGLang's number beside a prefix cache: three, and two that take snapshots by turns
SCORE_BYTES = 2**28  # SCORE_BYTES of sala_kernels.select_blocks.triton, whose import needs Triton
WEIGHTS = ("bf16", "fp8", "w4")
CACHES = ("bf16", "fp8")
INT4_GROUP = 128  # weights that share a scale of 16 bits
# Measured on H100 and H200, beside what shapes tell: CUDA's context, workspaces of libraries and captured decode
# graphs (benchmarks/results/serving/speed_memory.csv), and the pool of captured prefill graphs.
CONTEXT_BYTES, PREFILL_GRAPH_BYTES = 900 * MIB, 700 * MIB


class Load(NamedTuple):
    """What a server is to hold: requests of so many tokens at once, and how."""

    context_tokens: int
    requests: int = 1
    chunk_tokens: int = 8192
    weights: str = "bf16"
    cache: str = "bf16"
    prefix_cache: bool = True
    prefill_graphs: bool = True
    pool_tokens: int | None = None  # of the KV pool; None: the requests at their full length

    @property
    def states(self) -> int:
        """Recurrent states of running requests."""
        return self.requests * (STATES_PER_REQUEST if self.prefix_cache else 1)


def memory_bytes(config: SALAConfig, load: Load) -> dict[str, int]:
    """Bytes by what takes them, without snapshots, which give way when memory runs short."""
    chunk, heads = load.chunk_tokens, config.num_attention_heads * config.head_dim
    tokens = load.requests * load.context_tokens if load.pool_tokens is None else load.pool_tokens
    return {
        "weights": weight_bytes(config, load.weights),
        "keys and values": tokens * cache_bytes_per_token(config, load.cache),
        "compressed keys": tokens * compressed_bytes_per_token(config),
        "states of running requests": (load.states + 1) * state_bytes(config),  # one is SGLang's padding
        "table of token slots": (load.requests + 1) * load.context_tokens * INT32,
        "block scores, at most": SCORE_BYTES,
        "partial attention of a chunk": chunk * heads * FLOAT32,
        "MLP activations of a chunk": 3 * chunk * config.intermediate_size * BFLOAT16,
        # What q, k, v and gate come out of, and rows in between: torch keeps a block for each.
        "other rows of a chunk": (4 + 8) * chunk * config.hidden_size * BFLOAT16,
        "prefill graphs, as measured": PREFILL_GRAPH_BYTES if load.prefill_graphs else 0,
        "context, libraries, decode graphs, as measured": CONTEXT_BYTES,
    }


def snapshot_bytes(config: SALAConfig, load: Load) -> int:
    """Snapshots of the prompts of all requests for the prefix cache, inside of them and at their ends."""
    return load.requests * (load.context_tokens // DEFAULT_SNAPSHOT_SPACING) * state_bytes(config)


def weight_bytes(config: SALAConfig, weights: str) -> int:
    """Weights of a checkpoint; embedding, head and norms stay bfloat16, all other matrices are quantised."""
    sizes = {name: (shape, math.prod(shape)) for name, shape in tensor_shapes(config).items()}
    total = 0
    for name, (shape, elements) in sizes.items():
        if weights == "bf16" or len(shape) == 1 or name in ("model.embed_tokens.weight", "lm_head.weight"):
            total += elements * BFLOAT16
        elif weights == "fp8":
            total += elements + shape[0] * FLOAT32  # a scale for every output
        else:
            total += elements // 2 + elements // INT4_GROUP * BFLOAT16
    return total


def cache_bytes_per_token(config: SALAConfig, cache: str) -> int:
    """Keys and values of all sparse layers."""
    elements = 2 * len(config.full_attention_layer_ids) * config.num_key_value_heads * config.head_dim
    return elements * (BFLOAT16 if cache == "bf16" else 1)


def compressed_bytes_per_token(config: SALAConfig) -> int:
    """Compressed keys, bfloat16 whatever the cache is."""
    layers, geometry = len(config.full_attention_layer_ids), config.sparse_geometry
    return geometry.compressed_bytes_per_token(layers, config.num_key_value_heads, config.head_dim, BFLOAT16)


def state_bytes(config: SALAConfig) -> int:
    """A recurrent state of all lightning layers."""
    return len(config.lightning_layer_ids) * config.lightning_nh * config.lightning_head_dim**2 * FLOAT32
