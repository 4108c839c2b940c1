"""Which layers stages get, by default and by the environment, and what of a checkpoint belongs to them."""

import itertools
import random

import pytest
from sglang.srt.distributed.utils import get_pp_indices

from sala_sglang.checkpoint.parameter_shapes import tensor_shapes
from sala_sglang.config import LIGHTNING, SPARSE, SALAConfig
from sala_sglang.environment import LAYER_PARTITION
from sala_sglang.models.pipeline import Stage, check_both_kinds, default_partition, divide_layers, layer_costs

RELEASED = SALAConfig()


@pytest.fixture(autouse=True)
def no_partition(monkeypatch):
    """Nothing written by the user; what a test writes is gone afterwards."""
    monkeypatch.setenv(LAYER_PARTITION, "")
    monkeypatch.delenv(LAYER_PARTITION)


def ranges(stages: int) -> list[tuple[int, int]]:
    """The layers of every stage, as SGLang's pools have them."""
    return [get_pp_indices(RELEASED.num_hidden_layers, stage, stages) for stage in range(stages)]


@pytest.mark.parametrize("stages, partition", [(1, [32]), (2, [17, 15]), (4, [9, 8, 7, 8]), (32, [1] * 32)])
def test_released_layers(stages, partition):
    assert default_partition(layer_costs(RELEASED), stages) == partition


@pytest.mark.parametrize("seed", range(20))
def test_no_other_partition_has_a_faster_slowest_stage(seed):
    generator = random.Random(seed)
    costs = [generator.choice((0.1, 1.0, 2.2)) for _ in range(9)]
    for stages in range(1, 6):
        found = default_partition(costs, stages)
        assert sum(found) == len(costs) and min(found) > 0
        every = (bounds for bounds in itertools.combinations(range(1, len(costs)), stages - 1))
        best = min(slowest(costs, (0, *bounds, len(costs))) for bounds in every)
        assert slowest(costs, (0, *itertools.accumulate(found))) == pytest.approx(best)


def slowest(costs: list[float], bounds: tuple[int, ...]) -> float:
    return max(sum(costs[begin:end]) for begin, end in itertools.pairwise(bounds))


@pytest.mark.parametrize("stages", [2, 3, 4, 8])
def test_sglang_divides_by_what_is_written(stages):
    """One process may start engines with several numbers of stages."""
    divide_layers(RELEASED, stages)
    bounds = [0, *itertools.accumulate(default_partition(layer_costs(RELEASED), stages))]
    assert ranges(stages) == list(itertools.pairwise(bounds))


def test_what_the_user_writes_stays(monkeypatch):
    monkeypatch.setenv(LAYER_PARTITION, "20,12")
    divide_layers(RELEASED, 2)
    assert ranges(2) == [(0, 20), (20, 32)]


@pytest.mark.parametrize(
    "given", ["", "16", "32", "8,8,16", "16,15", "16,16,0", "32,0", "-1,33", "16,x", "16;16", "1e1,22"]
)
def test_partitions_that_do_not_fit_are_refused(monkeypatch, given):
    monkeypatch.setenv(LAYER_PARTITION, given)
    with pytest.raises(ValueError, match=f"{LAYER_PARTITION} = '{given}' is not possible; allowed: 2 positive numbers"):
        divide_layers(RELEASED, 2)


def test_one_stage_reads_no_partition(monkeypatch):
    monkeypatch.setenv(LAYER_PARTITION, "16,16")
    divide_layers(RELEASED, 1)
    assert get_pp_indices(RELEASED.num_hidden_layers, 0, 1) == (0, 32)


@pytest.mark.parametrize("stages", [0, 33])
def test_more_stages_than_layers_are_refused(stages):
    with pytest.raises(ValueError, match=f"pp_size = {stages} is not supported; allowed: 1 to 32, the layers"):
        divide_layers(RELEASED, stages)


@pytest.mark.parametrize("stages", [1, 2, 3, 6])
def test_every_tensor_belongs_to_one_stage(stages):
    config = SALAConfig(num_hidden_layers=6, mixer_types=[SPARSE, *[LIGHTNING] * 5])
    size = 6 // stages
    parts = [Stage(begin, begin + size, 6) for begin in range(0, 6, size)]
    owners = {name: [part for part in parts if part.has_tensor(name)] for name in tensor_shapes(config)}
    assert all(len(found) == 1 for found in owners.values())
    assert owners["model.embed_tokens.weight"] == [parts[0]]
    assert owners["model.norm.weight"] == owners["lm_head.weight"] == [parts[-1]]
    assert owners["model.layers.5.mlp.up_proj.weight"] == [parts[-1]]


def test_stages_with_layers_of_one_kind_are_found(monkeypatch):
    monkeypatch.setenv(LAYER_PARTITION, "16,16")
    check_both_kinds(RELEASED, 2)
    monkeypatch.delenv(LAYER_PARTITION)
    divide_layers(RELEASED, 8)
    with pytest.raises(
        ValueError, match=r"pp_size = 8 stages of 4,5,4,4,4,3,5,3 layers \(stage 1 has layers of one kind"
    ):
        check_both_kinds(RELEASED, 8)
