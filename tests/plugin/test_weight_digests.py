"""Checksums of weights over ranks, and ids of adapters: what depends on others' weights changes with them."""

import multiprocessing
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sala_sglang.config import SALAConfig
from sala_sglang.plugin.adapter_ids import adapter_id
from sala_sglang.plugin.weight_digests import digest_of_ranks
from testing.lora_adapters import write_adapter

RANKS, STAGES = 2, 2
WORLD = RANKS * STAGES
# Values of the weights of all ranks, those of the first stage first, at calls one after the other.
PLAIN = (1, 2, 3, 4)
CALLS = (PLAIN, (1, 2, 3, 5), (1, 9, 3, 4), PLAIN)


def run_rank(rank: int, store: str, results: multiprocessing.Queue) -> None:
    """Digests of CALLS, put as (rank, digests); the last stage is always late."""
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=WORLD)
    of_stage: list[Any] = [
        torch.distributed.new_group([RANKS * stage + other for other in range(RANKS)]) for stage in (0, 1)
    ]
    of_column: list[Any] = [torch.distributed.new_group([column, RANKS + column]) for column in range(RANKS)]
    stage, column = divmod(rank, RANKS)
    ranks = SimpleNamespace(world_size=RANKS, cpu_group=of_stage[stage])
    stages = SimpleNamespace(
        is_first_rank=stage == 0, is_last_rank=stage == 1, rank_in_group=stage, cpu_group=of_column[column]
    )
    found = []
    for values in CALLS:
        model = torch.nn.Linear(3, 2, bias=False)
        torch.nn.init.constant_(model.weight, values[rank])
        found.append(digest_of_ranks(model, ranks, stages))
        if stage == 0:  # it goes on before the next one has begun
            torch.distributed.barrier(of_stage[0])
    results.put((rank, found))
    torch.distributed.barrier()


@pytest.fixture(scope="module")
def digests(tmp_path_factory) -> dict[int, list[str]]:
    """By rank, one digest for each of CALLS."""
    context = multiprocessing.get_context("fork")
    results, store = context.Queue(), str(tmp_path_factory.mktemp("ranks") / "store")
    processes = [context.Process(target=run_rank, args=(rank, store, results)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    return found


def test_the_same_weights_have_the_same_digest(digests):
    assert all(of_rank[0] == of_rank[-1] for of_rank in digests.values())


def test_ranks_of_a_stage_depend_on_each_other_and_on_the_stage_before(digests):
    changed = [[rank for rank in range(WORLD) if digests[rank][call] != digests[rank][0]] for call in (1, 2)]
    assert changed == [[2, 3], [0, 1, 2, 3]]


@pytest.fixture
def adapter(tmp_path) -> Path:
    return write_adapter(tmp_path / "adapter", SALAConfig(), targets=("q_proj",), rank=1)


def of_content(folder: Path) -> str:
    return adapter_id(lambda name, path: f"{name} {path}", "name", str(folder))


def test_an_adapter_with_other_tensors_or_another_configuration_has_another_id(adapter, tmp_path):
    before = of_content(adapter)
    assert before.startswith(f"name {adapter}\0") and of_content(adapter) == before
    copy = shutil.copytree(adapter, tmp_path / "copy")
    assert of_content(copy).partition("\0")[2] == before.partition("\0")[2]
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] += 1
    save_file(tensors, copy / "adapter_model.safetensors")
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 3'))
    assert len({one.partition("\0")[2] for one in (before, of_content(copy), of_content(adapter))}) == 3


def test_an_adapter_of_the_hub_is_fetched(adapter, monkeypatch):
    asked = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        return str(adapter)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    found = adapter_id(lambda name, path: path, "name", "somebody/adapter")
    assert asked == ["somebody/adapter"] and found.partition("\0")[2] == of_content(adapter).partition("\0")[2]
