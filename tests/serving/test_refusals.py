"""Checkpoints that cannot be served: the server ends at start and says what is wrong."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from testing.server import Server

NORM = "model.layers.1.self_attn.o_norm.weight"
SHARD = "model-00001-of-00002.safetensors"


def impossible_config(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["sparse_config"]["kernel_stride"] = 24
    (checkpoint / "config.json").write_text(json.dumps(config))


def rename_norm(checkpoint: Path) -> None:
    """An unknown tensor in the place of a known one."""
    tensors = load_file(checkpoint / SHARD)
    tensors["model.layers.1.self_attn.out_norm.weight"] = tensors.pop(NORM)
    save_file(tensors, checkpoint / SHARD, metadata={"format": "pt"})


def drop_norm(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / SHARD)
    del tensors[NORM]
    save_file(tensors, checkpoint / SHARD, metadata={"format": "pt"})


def truncate_shard(checkpoint: Path) -> None:
    shard = checkpoint / SHARD
    shard.write_bytes(shard.read_bytes()[:-1000])


CASES = {
    impossible_config: ("sparse_config.kernel_stride = 24", "divisors of block_size / 4 = 16"),
    rename_norm: ("unknown tensor", "model.layers.1.self_attn.out_norm.weight"),
    drop_norm: ("lacks 1 tensors", NORM),
    truncate_shard: ("SafetensorError",),
}


@pytest.fixture(scope="module")
def failures(tiny_checkpoint, tmp_path_factory) -> dict:
    """What each case's server said before it ended; a start costs much, so they run side by side."""

    def start(damage) -> str:
        checkpoint = tmp_path_factory.mktemp(damage.__name__) / "checkpoint"
        shutil.copytree(tiny_checkpoint, checkpoint)
        damage(checkpoint)
        try:
            with Server(checkpoint):
                return "the server started"
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CASES, pool.map(start, CASES), strict=True))


@pytest.mark.parametrize("damage", CASES, ids=lambda damage: damage.__name__)
def test_damaged_checkpoint(failures, damage):
    for words in CASES[damage]:
        assert words in failures[damage], failures[damage]
