"""Time to the first token with pipeline stages, computed from kernels that were measured on one GPU, as CSV.

    python -m benchmarks.serving.pipeline_times --output benchmarks/results/serving/pipeline_times.csv

No GPU is needed, and nothing is measured: ``benchmarks.serving.several_gpus`` does that. What a layer takes for a chunk
comes from the profile of whole steps and the times of block selection by depth, both on an H100 with random weights,
whose picks are independent. A chunk begins on a stage when the stage has done the chunk before, and the stage before
this chunk and has sent it; the first token comes with the last chunk of the last stage.
"""

import argparse
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import results_file
from sala_sglang.checkpoint.parameter_shapes import layer_shapes
from sala_sglang.config import LIGHTNING, SPARSE, SALAConfig
from sala_sglang.models.pipeline import COST_DEPTH_TOKENS, default_partition, layer_costs

RESULTS = Path(__file__).parents[1] / "results"
PROFILE, OPERATORS = RESULTS / "serving" / "step_profile.csv", RESULTS / "operators" / "run.csv"
RANKS = RESULTS / "serving" / "tensor_parallel.csv"
CHUNK = 8192  # tokens, as profiled
PROFILED_DEPTH = 122_880  # tokens before a profiled chunk; the other one has none before it
LENGTHS = 8_192, 32_768, 131_072, 524_288, 1_040_000
LINK_BYTES_PER_MS = 300e6  # assumed for NVLink, one way
# Groups of the profile that grow with the matrices, and those that only layers of one kind have.
PRODUCTS, OF_LIGHTNING, OF_SPARSE = "matrix products", ("lightning",), ("sparse_attention", "compress_keys")
SELECTION, WHOLE = "select_blocks", ("busy", "idle")
COLUMNS = "prompt_tokens", "chunk_tokens", "tp", "pp", "partition", "ttft_s", "against_one_gpu"


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds that layers take for a chunk of 8,192 tokens."""

    config: SALAConfig
    first: dict[str, float]  # by kind, of the first chunk
    later: dict[str, float]  # of all others; of sparse layers without the selection
    last: float  # of the last layer, which computes the last rows alone
    selection: tuple[float, float]  # at depth 0, and per token of depth

    def of_chunk(self, begin: int) -> list[float]:
        """Every layer, for the chunk that begins after ``begin`` tokens."""
        base, slope = self.selection
        select = max(0.0, base + slope * (begin + CHUNK)) if begin else 0.0
        times = {kind: ms + select * (kind == SPARSE) for kind, ms in (self.later if begin else self.first).items()}
        return [*(times[kind] for kind in self.config.layer_kinds[:-1]), self.last]


def layer_times(config: SALAConfig) -> LayerTimes:
    """From the newest profile and the measured selection. The configuration must be the released one."""
    first, later = (read_profile(depth) for depth in (0, PROFILED_DEPTH))
    near, far = (read_selection(tokens) for tokens in (131_072, 1_048_576))
    slope = (far - near) / (1_048_576 - 131_072)
    last = last_layer_share(config) * first[PRODUCTS]
    return LayerTimes(
        config=config,
        first=by_kind(config, first, last, first[SELECTION]),
        later=by_kind(config, later, last, 0),
        last=last,
        selection=(near - slope * 131_072, slope),
    )


def by_kind(config: SALAConfig, groups: dict[str, float], last: float, selection: float) -> dict[str, float]:
    """A layer of each kind. What no kind has alone is the same for all layers but the last."""
    kinds = config.layer_kinds[:-1]
    counts = {kind: kinds.count(kind) for kind in (SPARSE, LIGHTNING)}
    weights = {kind: multiplications(config, kind) for kind in counts}
    per_multiplication = (groups[PRODUCTS] - last) / sum(counts[kind] * weights[kind] for kind in counts)
    own = {
        LIGHTNING: sum(groups[name] for name in OF_LIGHTNING),
        SPARSE: sum(groups[name] for name in OF_SPARSE) + selection,
    }
    special = sum(groups[name] for name in (PRODUCTS, SELECTION, *OF_LIGHTNING, *OF_SPARSE))
    shared = sum(groups[name] for name in WHOLE) - special
    return {
        kind: per_multiplication * weights[kind] + own[kind] / counts[kind] + shared / len(kinds) for kind in counts
    }


def multiplications(config: SALAConfig, kind: str) -> int:
    """Of a row with the matrices of a layer."""
    return sum(math.prod(shape) for shape in layer_shapes(config, kind).values() if len(shape) == 2)


def last_layer_share(config: SALAConfig) -> float:
    """The part of all multiplications of a chunk that the last layer does: q, k, v and gate alone, for all rows."""
    *kinds, last = config.layer_kinds
    shapes = layer_shapes(config, last)
    inputs = sum(math.prod(shape) for name, shape in shapes.items() if name.endswith(("q_proj", "k_proj", "v_proj")))
    gate = sum(math.prod(shape) for name, shape in shapes.items() if name.endswith(("o_gate", "z_proj")))
    return (inputs + gate) / (inputs + gate + sum(multiplications(config, kind) for kind in kinds))


def read_profile(depth: int) -> dict[str, float]:
    """Milliseconds of a prefill chunk after ``depth`` tokens by group of kernels, of the newest profile."""
    with PROFILE.open() as file:
        rows = [row for row in csv.DictReader(file) if row["step"] == f"prefill of {CHUNK}"]
    rows = [row for row in rows if row["context_tokens"] == str(depth)]
    return {row["group"]: float(row["ms_per_step"]) for row in rows if row["commit"] == rows[-1]["commit"]}


def read_selection(tokens: int) -> float:
    """Milliseconds of block selection for a chunk that ends a prompt of ``tokens``."""
    with OPERATORS.open() as file:
        rows = [row for row in csv.DictReader(file) if row["operator"] == SELECTION]
    case = f"prefill {CHUNK} of {tokens}"
    return next(float(row["median_us"]) / 1000 for row in reversed(rows) if row["case"] == case)


def two_ranks_share() -> float:
    """Time to the first token after 131,072 tokens with two tensor-parallel GPUs against one, as measured."""
    with RANKS.open() as file:
        rows = [row for row in csv.DictReader(file) if row["prompt_tokens"] == "131072" and row["ttft_s"]]
    rows = [row for row in rows if row["pp"] == "1"]
    one, two = (next(float(row["ttft_s"]) for row in reversed(rows) if row["tp"] == tp) for tp in "12")
    return two / one


def first_token_ms(times: LayerTimes, prompt: int, partition: Sequence[int], share: float = 1.0) -> float:
    """Milliseconds until the last stage has the last chunk; ``share``: of what one GPU takes for a layer."""
    sending = 2 * CHUNK * times.config.hidden_size * 2 / LINK_BYTES_PER_MS  # branch and residual, of two bytes
    done = [0.0] * len(partition)
    for begin in range(0, prompt, CHUNK):
        part = min(CHUNK, prompt - begin) / CHUNK
        layers = [part * share * ms for ms in times.of_chunk(begin)]
        arrived, first = 0.0, 0
        for stage, count in enumerate(partition):
            done[stage] = max(done[stage], arrived) + sum(layers[first : first + count])
            arrived, first = done[stage] + part * sending, first + count
    return done[-1]


def partitions(config: SALAConfig) -> list[tuple[int, list[int]]]:
    """Tensor-parallel ranks, and the layers of every stage: equal parts beside the default."""
    layers = config.num_hidden_layers
    found = [(1, [layers]), (2, [layers])]
    for stages in (2, 4, 8):
        default = default_partition(layer_costs(config), stages)
        found += [(1, [layers // stages] * stages), (1, default)] + [(2, default)] * (stages < 8)
    return found


def rows(config: SALAConfig) -> list[dict]:
    times, two = layer_times(config), two_ranks_share()
    found = []
    for prompt in LENGTHS:
        one = first_token_ms(times, prompt, [config.num_hidden_layers])
        for tp, partition in partitions(config):
            ttft = first_token_ms(times, prompt, partition, share=two if tp == 2 else 1.0)
            row = prompt, CHUNK, tp, len(partition), " ".join(map(str, partition)), f"{ttft / 1000:.3f}"
            found.append(dict(zip(COLUMNS, (*row, f"{ttft / one:.2f}"), strict=True)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="CSV file; rows are appended")
    options = parser.parse_args()
    for row in rows(SALAConfig()):
        results_file.append(options.output, row, COLUMNS)
    times = layer_times(SALAConfig())
    for depth in (0, CHUNK, 131_072, COST_DEPTH_TOKENS, 1_040_000):
        layers = times.of_chunk(depth)
        sparse, lightning = layers[0], layers[1]
        print(
            f"after {depth:9,} tokens: sparse {sparse:5.2f} ms, lightning {lightning:5.2f}, last {times.last:5.2f}; "
            f"against a lightning layer {sparse / lightning:.2f}, {times.last / lightning:.2f}"
        )


if __name__ == "__main__":
    main()
