"""Time to the first token of one prompt on several GPUs, computed for every form in which they can share its work.

    python -m benchmarks.serving.division --output benchmarks/results/serving/division.csv

Nothing is measured here: the inputs are measurements of one H100 and of two with tensor parallelism, and what
follows is arithmetic. It gives the rows of one GPU of 2026-11-26 (benchmarks/results/serving/speed.csv) within 3 %.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from pathlib import Path

from benchmarks.common import results_file
from sala_sglang.config import SALAConfig

CHUNK = 8192
PROMPTS = 8192, 131_072, 1_040_000
COLUMNS = "form", "gpus", "prompt_tokens", "ttft_s", "weights_share", "kv_share"
# Milliseconds of a chunk of one H100. The products, norms and lightning layers: what is left of measured chunks.
ALL_LAYERS_MS = 235.0
# benchmarks/results/operators/run.csv: sparse_attention (independent picks) and select_blocks, by depth in tokens.
DENSE_MS = 1.30
ATTENTION_MS = {131_072: 4.71, 1_048_576: 6.62}
SELECTION_MS = {131_072: 1.87, 1_048_576: 15.36}
# Two GPUs of benchmarks/results/serving/tensor_parallel.csv take this much longer than half of one, per chunk; more
# GPUs by the steps of a ring, 2 (n - 1) / n.
ALL_REDUCES_MS = 23.0
ALL_REDUCES = 64  # of a chunk: two in each of 32 layers
# Assumed of one collective among GPUs of a host.
LINK_BYTES_PER_MS, LATENCY_MS = 300e6, 0.03

CONFIG = SALAConfig()
LAYERS, SPARSE = CONFIG.num_hidden_layers, CONFIG.full_attention_layer_ids
BFLOAT16, FLOAT32 = 2, 4  # bytes
STATE_BYTES = CONFIG.lightning_nh * CONFIG.lightning_head_dim**2 * FLOAT32
KV_BYTES = 2 * CHUNK * CONFIG.num_key_value_heads * CONFIG.head_dim * BFLOAT16
ROWS_BYTES = CHUNK * CONFIG.hidden_size * BFLOAT16


def at(points: dict[int, float], depth: float) -> float:
    """On the line through two points."""
    (first, low), (last, high) = points.items()
    return low + (high - low) * (depth - first) / (last - first)


def sparse_ms(prompt: int) -> tuple[float, float]:
    """Selection and attention of one layer and chunk at the mean depth of a prompt."""
    if prompt <= CHUNK:
        return 0.0, DENSE_MS
    return at(SELECTION_MS, prompt / 2), at(ATTENTION_MS, prompt / 2)


def layer_costs(prompt: int, share: float) -> list[float]:
    """Milliseconds of every layer and chunk on a GPU that does ``share`` of the work."""
    sparse = sum(sparse_ms(prompt))
    return [share * (ALL_LAYERS_MS / LAYERS + (sparse if layer in SPARSE else 0)) for layer in range(LAYERS)]


def split(costs: Sequence[float], stages: int) -> list[int]:
    """Layers of each stage such that the slowest one takes the least time."""

    def slowest(ends: tuple[int, ...]) -> float:
        bounds = 0, *ends, len(costs)
        return max(sum(costs[begin:end]) for begin, end in pairwise(bounds))

    ends = min(combinations(range(1, len(costs)), stages - 1), key=slowest)
    bounds = 0, *ends, len(costs)
    return [end - begin for begin, end in pairwise(bounds)]


def all_reduces_ms(gpus: int) -> float:
    return ALL_REDUCES_MS * 2 * (gpus - 1) / gpus


def collective_ms(size: float) -> float:
    return LATENCY_MS + size / LINK_BYTES_PER_MS


def one(prompt: int, gpus: int) -> float:
    return chunks(prompt) * sum(layer_costs(prompt, 1))


def tensor(prompt: int, gpus: int) -> float:
    """Ranks that share a KV head all select for its whole group: selection gets no faster than with two."""
    selection, attention = (len(SPARSE) * ms for ms in sparse_ms(prompt))
    shared = ALL_LAYERS_MS / gpus + attention / gpus + selection / min(gpus, CONFIG.num_key_value_heads)
    return chunks(prompt) * (shared + all_reduces_ms(gpus))


def pipeline(prompt: int, gpus: int) -> float:
    return stages_ms(prompt, layer_costs(prompt, 1), gpus)


def tensor_and_pipeline(prompt: int, gpus: int) -> float:
    costs = [cost + all_reduces_ms(2) / LAYERS for cost in layer_costs(prompt, 1 / 2)]
    return stages_ms(prompt, costs, gpus // 2)


def stages_ms(prompt: int, costs: list[float], stages: int) -> float:
    """A chunk follows the one before it through the stages; branch and residual stream go from one to the next."""
    sizes = split(costs, stages)
    bounds = [sum(sizes[:stage]) for stage in range(stages + 1)]
    slowest = max(sum(costs[begin:end]) for begin, end in pairwise(bounds))
    return (chunks(prompt) + stages - 1) * (slowest + 2 * collective_ms(ROWS_BYTES))


def context(prompt: int, gpus: int) -> float:
    """Rows of a chunk over GPUs; keys and values are gathered, and states passed from one part to the next."""
    lightning = LAYERS - len(SPARSE)
    states = lightning * collective_ms(STATE_BYTES * (gpus - 1))
    keys = len(SPARSE) * collective_ms(KV_BYTES)
    return chunks(prompt) * (sum(layer_costs(prompt, 1 / gpus)) + states + keys)


def context_by_heads(prompt: int, gpus: int) -> float:
    """The same with lightning layers divided by heads: rows are gathered before them, and divided again after."""
    lightning = LAYERS - len(SPARSE)
    exchanges = all_reduces_ms(gpus) * lightning / ALL_REDUCES + len(SPARSE) * collective_ms(KV_BYTES)
    return chunks(prompt) * (sum(layer_costs(prompt, 1 / gpus)) + exchanges)


def chunks(prompt: int) -> int:
    return -(-prompt // CHUNK)


# Milliseconds to the first token, and how many GPUs share one copy of the weights and of the KV cache.
FORMS: dict[str, tuple[Callable[[int, int], float], Callable[[int], int], Callable[[int], int]]] = {
    "one GPU": (one, lambda gpus: 1, lambda gpus: 1),
    "tensor parallel": (tensor, lambda gpus: gpus, lambda gpus: min(gpus, 2)),
    "pipeline stages": (pipeline, lambda gpus: gpus, lambda gpus: gpus),
    "tensor parallel by 2, pipeline stages": (tensor_and_pipeline, lambda gpus: gpus, lambda gpus: gpus),
    "context parallel, states passed on": (context, lambda gpus: 1, lambda gpus: 1),
    "context parallel, lightning by heads": (context_by_heads, lambda gpus: 1, lambda gpus: 1),
}


def rows() -> list[dict[str, str]]:
    """Rows of the CSV file."""
    found = []
    for name, (compute, weights, kv) in FORMS.items():
        sizes = (1,) if compute is one else (4,) if compute is tensor_and_pipeline else (2, 4)
        for gpus in sizes:
            for prompt in PROMPTS:
                seconds = f"{compute(prompt, gpus) / 1e3:.2f}"
                values = name, gpus, prompt, seconds, f"1/{weights(gpus)}", f"1/{kv(gpus)}"
                found.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="CSV file; rows are appended")
    options = parser.parse_args()
    for row in rows():
        results_file.append(options.output, row, COLUMNS)
        print("{form:38} {gpus:>2} {prompt_tokens:>9} {ttft_s:>7} s".format(**row))


if __name__ == "__main__":
    main()
