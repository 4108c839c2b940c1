"""What is computed of pipeline stages: the arithmetic of the bubble, the costs of layers, and what the page says."""

import csv
from pathlib import Path

import pytest

from benchmarks.serving import pipeline_times
from benchmarks.serving.pipeline_times import CHUNK, LayerTimes, first_token_ms, layer_times
from sala_sglang.config import SPARSE, SALAConfig
from sala_sglang.models import pipeline

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "pipeline_parallelism.md").read_text()
RELEASED = SALAConfig()
EQUAL = LayerTimes(RELEASED, *({kind: 1.0 for kind in set(RELEASED.layer_kinds)},) * 2, last=1.0, selection=(0, 0))


@pytest.fixture
def free_sending(monkeypatch):
    monkeypatch.setattr(pipeline_times, "LINK_BYTES_PER_MS", float("inf"))


@pytest.mark.parametrize("chunks", [1, 16])
@pytest.mark.parametrize("stages", [1, 2, 4, 8])
def test_equal_stages_take_a_step_for_every_chunk_and_every_further_stage(free_sending, chunks, stages):
    step = 32 / stages
    assert first_token_ms(EQUAL, chunks * CHUNK, [32 // stages] * stages) == (chunks + stages - 1) * step


def test_the_slowest_stage_sets_the_pace(free_sending):
    assert first_token_ms(EQUAL, 100 * CHUNK, [20, 12]) == 100 * 20 + 12
    assert first_token_ms(EQUAL, 100 * CHUNK, [12, 20]) == 100 * 20 + 12


def test_times_of_layers_add_up_to_a_step():
    times = layer_times(RELEASED)
    *kinds, _ = RELEASED.layer_kinds
    for depth, of_kind in ((0, times.first), (pipeline_times.PROFILED_DEPTH, times.later)):
        groups = pipeline_times.read_profile(depth)
        measured = groups["busy"] + groups["idle"] - (groups["select_blocks"] if depth else 0)
        assert sum(of_kind[kind] for kind in kinds) + times.last == pytest.approx(measured)


def test_selection_by_itself_agrees_with_that_of_a_step():
    """It is measured twice, on other days: alone, and with everything around it."""
    times = layer_times(RELEASED)
    selection = sum(times.of_chunk(pipeline_times.PROFILED_DEPTH)) - times.last
    selection -= sum(times.later[kind] for kind in RELEASED.layer_kinds[:-1])
    assert selection == pytest.approx(
        pipeline_times.read_profile(pipeline_times.PROFILED_DEPTH)["select_blocks"], rel=0.4
    )


def test_the_model_divides_by_what_is_computed():
    times = layer_times(RELEASED).of_chunk(pipeline.COST_DEPTH_TOKENS)
    sparse, lightning, last = times[0], times[1], times[-1]
    assert round(sparse / lightning, 1) == pipeline.SPARSE_COST
    assert round(last / lightning, 1) == pipeline.LAST_COST
    assert RELEASED.max_position_embeddings == 2 * pipeline.COST_DEPTH_TOKENS


def test_results_are_what_the_script_computes():
    with (ROOT / "benchmarks" / "results" / "serving" / "pipeline_times.csv").open() as file:
        committed = list(csv.DictReader(file))
    assert committed == [{name: str(value) for name, value in row.items()} for row in pipeline_times.rows(RELEASED)]


@pytest.mark.parametrize("depth", [0, 8_192, 131_072, 262_144, 1_040_000])
def test_page_has_the_times_of_layers(depth):
    sparse, lightning, *_, last = layer_times(RELEASED).of_chunk(depth)
    line = f"| {depth:,} | {sparse:.2f} | {lightning:.2f} | {last:.2f} | {sparse / lightning:.2f} |"
    assert line in PAGE


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_page_has_the_division(stages):
    partition = pipeline.default_partition(pipeline.layer_costs(RELEASED), stages)
    kinds, sparse = list(RELEASED.layer_kinds), []
    for count in partition:
        sparse.append(kinds[:count].count(SPARSE))
        kinds = kinds[count:]
    assert f"| {stages} | {', '.join(map(str, partition))} | {', '.join(map(str, sparse))} |" in PAGE


@pytest.mark.parametrize(
    "title, tp, partition",
    [
        ("1 GPU, computed in the same way", 1, "32"),
        ("2 stages, 16 + 16 layers", 1, "16 16"),
        ("2 stages, 17 + 15", 1, "17 15"),
        ("4 stages, 8 each", 1, "8 8 8 8"),
        ("4 stages, 9 + 8 + 7 + 8", 1, "9 8 7 8"),
        ("8 stages, default", 1, "4 5 4 4 4 3 5 3"),
        ("2 stages of 2 tensor-parallel GPUs", 2, "17 15"),
    ],
)
def test_page_has_the_times_to_the_first_token(title, tp, partition):
    found = {row["prompt_tokens"]: row["ttft_s"] for row in pipeline_times.rows(RELEASED)
             if (row["tp"], row["partition"]) == (tp, partition)}  # fmt: skip
    cells = [f"{float(found[tokens]):.2f}" for tokens in (32_768, 131_072, 524_288, 1_040_000)]
    assert f"| {title} | {' | '.join(cells)} |" in PAGE
