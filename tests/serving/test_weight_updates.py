"""Weights of a running server come in parts, as a trainer sends them, onto random ones and onto others."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.serving.client import complete, random_prompt
from tests.serving.oracle import Oracle

TOLERANCE = 1e-4  # as in test_equality
TOKENS = 6
ARGUMENTS = "--load-format dummy --dtype float32 --max-running-requests 4"
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def server(start_server):
    with start_server(*ARGUMENTS.split()) as running:
        yield running


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tmp_path_factory) -> list[Path]:
    """Folders with a part of the checkpoint's tensors each."""
    folders = []
    for shard in sorted(tiny_checkpoint.glob("*.safetensors")):
        folder = tmp_path_factory.mktemp("part")
        shutil.copy(tiny_checkpoint / "config.json", folder)
        shutil.copy(shard, folder / "model.safetensors")
        folders.append(folder)
    return folders


def update(server, folder: Path) -> None:
    answer = server.post("/update_weights_from_disk", {"model_path": str(folder), "load_format": "auto"})
    assert answer["success"], answer


def test_random_weights_are_replaced_in_parts(server, oracle, parts):
    prompt = random_prompt(600, 400, seed=1)
    with pytest.raises(AssertionError):
        oracle.check(prompt, complete(server.client, prompt, TOKENS), TOLERANCE)
    for folder in parts:
        update(server, folder)
    for length in (70, 600):
        prompt = random_prompt(length, 400, seed=2)
        oracle.check(prompt, complete(server.client, prompt, TOKENS), TOLERANCE)


def test_one_tensor_is_replaced(server, tiny_checkpoint, parts, tmp_path):
    for folder in parts:
        update(server, folder)
    index = json.loads((tiny_checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    head = load_file(tiny_checkpoint / index[HEAD])[HEAD].flip(0).contiguous()
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    save_file({HEAD: head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    update(server, tmp_path)
    changed = Oracle(tiny_checkpoint)
    with torch.no_grad():
        changed.model.get_parameter(HEAD).copy_(head)
    prompt = random_prompt(130, 400, seed=3)
    changed.check(prompt, complete(server.client, prompt, TOKENS), TOLERANCE)
