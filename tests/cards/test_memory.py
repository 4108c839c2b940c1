"""The arithmetic of memory: by hand, and beside every peak that was measured with a pool of known size."""

import csv
import json
import math
from pathlib import Path

import pytest
from sala_kernels.select_blocks.triton import SCORE_BYTES

from sala_sglang.cards import memory
from sala_sglang.cards.memory import MIB, Load, memory_bytes, snapshot_bytes, weight_bytes
from sala_sglang.cards.plan import ERROR
from sala_sglang.checkpoint.parameter_shapes import tensor_shapes
from sala_sglang.config import SALAConfig

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "serving"
CONFIG = SALAConfig()
ENGINES = {"plugin": "bf16", "plugin-fp8": "fp8"}


def rows(name: str, **wanted: str) -> list[dict]:
    with (RESULTS / name).open(newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]


def test_parts_by_hand():
    sizes = memory_bytes(CONFIG, Load(2**20, requests=3))
    assert sizes["weights"] == 2 * 9_477_203_968
    assert sizes["keys and values"] == 3 * 2**20 * 8192 and sizes["compressed keys"] == 3 * 2**20 * 320
    assert sizes["states of running requests"] == (3 * 5 + 1) * 48 * MIB
    assert snapshot_bytes(CONFIG, Load(2**20, requests=3)) == 3 * 128 * 48 * MIB
    assert sizes["block scores, at most"] == SCORE_BYTES
    assert memory_bytes(CONFIG, Load(2**20, cache="fp8"))["keys and values"] == 2**20 * 4096


def test_weights_by_format():
    """Matrices of layers are 8.87 of the 9.48 billion parameters."""
    matrices = sum(
        math.prod(shape) for name, shape in tensor_shapes(CONFIG).items() if len(shape) == 2 and "layers" in name
    )
    rest = 2 * (9_477_203_968 - matrices)
    fp8, w4 = weight_bytes(CONFIG, "fp8"), weight_bytes(CONFIG, "w4")
    assert 0 < fp8 - rest - matrices < 0.001 * matrices, "scales of outputs"
    assert w4 - rest == matrices // 2 + matrices // 128 * 2


@pytest.mark.parametrize("column", ["needed_memory_mib", "peak_memory_mib"])
@pytest.mark.parametrize("engine", ENGINES)
def test_measured_peaks(engine, column):
    found = rows("side_by_side.csv", engine=engine, outcome="measured")
    assert len(found) >= 7
    for row in found:
        options = json.loads(row["options"])
        # SGLang begins with the whole pool; what a length needs is computed there from the pages that it takes.
        pool = int(row["pool_tokens"]) if column == "peak_memory_mib" else int(row["prompt_tokens"])
        load = Load(
            options["context_length"],
            options["max_running_requests"],
            options["chunked_prefill_size"],
            ENGINES[engine],
            prefix_cache=not options["disable_radix_cache"],
            pool_tokens=pool,
        )
        computed = sum(memory_bytes(CONFIG, load).values()) / MIB
        assert computed == pytest.approx(float(row[column]), rel=ERROR), (row["prompt_tokens"], computed)


def test_measured_parts():
    measured = {row["what"]: float(row["mib"]) for row in rows("speed_memory.csv", engine="plugin", date="2026-11-26")}
    options = json.loads(rows("speed_memory.csv", engine="plugin", date="2026-11-26")[0]["options"])
    load = Load(options["context_length"], options["max_running_requests"], prefix_cache=False, prefill_graphs=False)
    parts = memory_bytes(CONFIG, load)
    assert measured["weights"] == pytest.approx(parts["weights"] / MIB, rel=0.001)
    # After the start, before the first long step: what it takes beside pools, with the scores of the warm-up.
    rest = "states of running requests", "table of token slots", "block scores, at most"
    computed = sum(parts[name] for name in rest) + memory.CONTEXT_BYTES
    found = measured["states and the rest"] + measured["decode graphs"]
    assert abs(computed / MIB - found) < ERROR * measured["sum after the start"]
