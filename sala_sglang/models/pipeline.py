"""Pipeline stages: which layers every stage has, and how they are divided unless the user says it.

Every stage works while the others do, on another chunk or batch, so the slowest one sets the pace. A sparse layer takes
longer than a lightning layer, the more so the longer the prompt, and the last layer takes next to nothing, since of a
prompt it computes one row. So stages of equal numbers of layers are not equally fast.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from sala_sglang.config import SPARSE, SALAConfig
from sala_sglang.environment import LAYER_PARTITION

# What a layer takes in prefill, against a lightning layer: a chunk of 8,192 tokens after 262,144, the middle of the
# longest released context, on an H100, as benchmarks/serving/pipeline_times.py computes from measured kernels.
COST_DEPTH_TOKENS = 262_144
LIGHTNING_COST, SPARSE_COST, LAST_COST = 1.0, 2.2, 0.1


@dataclass(frozen=True)
class Stage:
    """The decoder layers ``begin`` to ``end`` of a model with ``layers``, of which this process has no others."""

    begin: int
    end: int
    layers: int

    @property
    def is_first(self) -> bool:
        """Whether the embedding is here."""
        return self.begin == 0

    @property
    def is_last(self) -> bool:
        """Whether norm and head are here."""
        return self.end == self.layers

    def has_layer(self, index: int) -> bool:
        return self.begin <= index < self.end

    def has_tensor(self, name: str) -> bool:
        """Whether the tensor of this name in a checkpoint belongs to this stage."""
        if name.startswith("model.layers."):
            return self.has_layer(int(name.split(".")[2]))
        return self.is_first if name.startswith("model.embed_tokens.") else self.is_last


def this_stage(config: SALAConfig) -> Stage:
    """The stage of this process."""
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    return Stage(*_bounds(config, parallel.pp_rank, parallel.pp_size), config.num_hidden_layers)


def _bounds(config: SALAConfig, stage: int, stages: int) -> tuple[int, int]:
    """The first layer of a stage and the one behind its last, as SGLang's pools divide the layers too."""
    from sglang.srt.distributed.utils import get_pp_indices

    begin, end = get_pp_indices(config.num_hidden_layers, stage, stages)
    return begin, end


def divide_layers(config: SALAConfig, stages: int) -> None:
    """Write into the environment, where SGLang and workers read it, which stage has how many layers.

    What the user has written there stays. Raises ValueError where that does not divide the model's layers, or the model
    has fewer layers than ``stages``.
    """
    layers = config.num_hidden_layers
    if not 1 <= stages <= layers:
        raise ValueError(f"MiniCPM-SALA: pp_size = {stages} is not supported; allowed: 1 to {layers}, the layers")
    if stages == 1:
        return
    given = os.environ.get(LAYER_PARTITION)
    if given is None or given in _written:
        written = ",".join(map(str, default_partition(layer_costs(config), stages)))
        _written.add(written)
        os.environ[LAYER_PARTITION] = written
        return
    parts = given.split(",")
    whole = all(part.strip().isdecimal() and int(part) > 0 for part in parts)
    if not whole or len(parts) != stages or sum(map(int, parts)) != layers:
        raise ValueError(
            f"{LAYER_PARTITION} = {given!r} is not possible; allowed: {stages} positive numbers with commas between "
            f"them, one for each of pp_size = {stages} stages, with the sum {layers}, the layers"
        )


def check_both_kinds(config: SALAConfig, stages: int) -> None:
    """Raise ValueError for a stage without sparse or without lightning layers; ``divide_layers`` has been called."""
    for stage in range(stages):
        begin, end = _bounds(config, stage, stages)
        if len(set(config.layer_kinds[begin:end])) < 2:
            raise ValueError(
                f"MiniCPM-SALA: enable_hierarchical_cache is not supported with pp_size = {stages} stages of "
                f"{os.environ[LAYER_PARTITION]} layers (stage {stage} has layers of one kind, and so no pages or no "
                f"states to copy); allowed: a {LAYER_PARTITION} with layers of both kinds on every stage"
            )


_written: set[str] = set()  # by this process, which may start another engine with another number of stages


def layer_costs(config: SALAConfig) -> list[float]:
    """What every layer takes in prefill, against a lightning layer."""
    costs = [SPARSE_COST if kind == SPARSE else LIGHTNING_COST for kind in config.layer_kinds]
    return [*costs[:-1], LAST_COST]


def default_partition(costs: Sequence[float], stages: int) -> list[int]:
    """Numbers of layers of the stages, at least one each, for which the slowest stage is fastest.

    Of equally good ones that with the most layers in the first stages.
    """
    sums = [0.0, *accumulate(costs)]

    @cache
    def best(begin: int, stages: int) -> tuple[float, list[int]]:
        """Time of the slowest of ``stages`` for the layers from ``begin`` on, and their numbers of layers."""
        if stages == 1:
            return sums[-1] - sums[begin], [len(costs) - begin]
        found: tuple[float, list[int]] | None = None
        for end in range(len(costs) - stages + 1, begin, -1):
            rest, numbers = best(end, stages - 1)
            slowest = max(sums[end] - sums[begin], rest)
            if found is None or slowest < found[0] - 1e-9:  # sums of equal layers may differ in their last bits
                found = slowest, [end - begin, *numbers]
        assert found is not None
        return found

    return best(0, stages)[1]
