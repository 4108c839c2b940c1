"""Files of the cache over two pipeline stages and with LoRA adapters: found again by whose weights they are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sala_sglang.config import SALAConfig
from testing.lora_adapters import changes, write_adapter
from tests.serving.client import random_prompt
from tests.serving.oracle import Answer, Oracle
from tests.serving.test_lora import ask
from tests.serving.test_storage import ARGUMENTS, SPACING, TOLERANCE, cached, wait_until, whole, written

PROMPT, UPDATED = random_prompt(900, 400, seed=1), random_prompt(500, 400, seed=2)
KEPT, REPLACED = "kept", "replaced"
ADAPTERS = None, KEPT, REPLACED
EMBEDDING = "model.embed_tokens.weight"  # of the first stage alone


@pytest.fixture(scope="module")
def adapters(tiny_checkpoint, tmp_path_factory) -> dict[str, Path]:
    root, config = tmp_path_factory.mktemp("adapters"), SALAConfig.from_pretrained(tiny_checkpoint)
    return {name: write_adapter(root / name, config, seed=seed) for seed, name in enumerate((KEPT, REPLACED))}


@pytest.fixture(scope="module")
def start(start_server, adapters, tmp_path_factory):
    """A function that starts a server over one directory, which is its attribute ``files``."""
    files = tmp_path_factory.mktemp("files")
    arguments = [*ARGUMENTS.split(), "--file-storage-path", str(files), "--pp-size", "2", "--lora-target-modules"]
    arguments += ["all", "--max-lora-rank", "4", "--lora-paths", *(f"{name}={adapters[name]}" for name in adapters)]

    def start_over_files():
        return start_server(*arguments, environment={"SALA_SNAPSHOT_SPACING": str(SPACING)})

    start_over_files.files = files
    return start_over_files


def expected(checkpoint: Path, adapter: Path | None = None) -> Oracle:
    oracle = Oracle(checkpoint)
    with torch.no_grad():
        for weight, change in changes(adapter) if adapter else ():
            oracle.model.get_parameter(weight).add_(change)
    return oracle


def asked(server, prompt: list[int], adapter: str | None = None) -> tuple[dict[str, int], Answer]:
    answer, meta = ask(server, prompt, adapter)
    return cached(meta), answer


@pytest.fixture(scope="module")
def server(start, adapters, tiny_checkpoint):
    """The second server over its files; since the first one, one of the two adapters has become another."""
    with start() as first:
        for adapter in ADAPTERS:
            found, answer = asked(first, PROMPT, adapter)
            assert found == {}
            expected(tiny_checkpoint, adapters.get(adapter)).check(PROMPT, answer, TOLERANCE)
        pages = len(ADAPTERS) * 2 * ((len(PROMPT) + len(answer.tokens) - 1) // 64)
        wait_until(lambda: len(written(start.files)) == pages)
    shutil.rmtree(adapters[REPLACED])
    write_adapter(adapters[REPLACED], SALAConfig.from_pretrained(tiny_checkpoint), seed=9)
    with start() as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_leaks(server):
    yield
    assert server.is_running() and not any(server.idle_counters().values())


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_restarted_server_finds_what_its_own_weights_computed(server, adapters, tiny_checkpoint, adapter):
    found, answer = asked(server, PROMPT, adapter)
    assert found == ({} if adapter == REPLACED else {"storage": whole(PROMPT)})
    expected(tiny_checkpoint, adapters.get(adapter)).check(PROMPT, answer, TOLERANCE)


def test_other_weights_of_one_stage_have_other_files_on_both(server, start, tiny_checkpoint, tmp_path):
    """What the second stage computes from other embeddings must not be kept under the names of before."""
    folders = {"plain": tiny_checkpoint, "scaled": with_other_embeddings(tiny_checkpoint, tmp_path / "scaled")}
    for name, found in ("plain", {}), ("scaled", {}), ("plain", None), ("scaled", None):
        server.flush_cache()  # waits until the server is at rest, as SGLang asks for
        answer = server.post("/update_weights_from_disk", {"model_path": str(folders[name]), "load_format": "auto"})
        assert answer["success"], answer
        before = len(written(start.files))
        hits, answer = asked(server, UPDATED)
        assert hits == ({"storage": whole(UPDATED)} if found is None else found)
        expected(folders[name]).check(UPDATED, answer, TOLERANCE)
        if found is not None:
            wait_until(lambda before=before: len(written(start.files)) == before + 2 * (len(UPDATED) // 64))


def with_other_embeddings(checkpoint: Path, copy: Path) -> Path:
    shutil.copytree(checkpoint, copy)
    file = copy / json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"][EMBEDDING]
    tensors = load_file(file)
    tensors[EMBEDDING] = tensors[EMBEDDING].flip(1).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    return copy
