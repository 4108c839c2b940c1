"""LoRA adapters on a server answer as the plain model with merged weights does."""

import json
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from sala_sglang.config import SALAConfig
from testing.lora_adapters import changes, write_adapter
from testing.server import Server
from tests.serving.client import random_prompt
from tests.serving.oracle import Answer, Oracle

TOLERANCE = 1e-4  # as in test_equality
VOCABULARY, TOKENS = 400, 6
# Names, layers and options of adapters. The first has every released layer of both mixers.
ADAPTERS: dict[str, dict] = {
    "all": {"rank": 4},
    "some": {"targets": ("q_proj", "v_proj"), "rank": 8, "use_rslora": True, "alpha_pattern": {"v_proj": 4}},
    "gates": {"targets": ("o_gate", "z_proj", "k_proj", "down_proj"), "rank": 6, "rank_pattern": {"k_proj": 2}},
}
LATE = {"rank": 3}  # loaded while the server runs


@pytest.fixture(scope="module")
def folders(tiny_checkpoint, tmp_path_factory) -> dict[str, Path]:
    root, config = tmp_path_factory.mktemp("adapters"), SALAConfig.from_pretrained(tiny_checkpoint)
    options = ADAPTERS | {"late": LATE}
    return {name: write_adapter(root / name, config, seed=seed, **options[name]) for seed, name in enumerate(options)}


@pytest.fixture(scope="module")
def oracles(tiny_checkpoint, folders) -> dict[str | None, Oracle]:
    """By the name of an adapter, None for the model alone."""
    found: dict[str | None, Oracle] = {None: Oracle(tiny_checkpoint)}
    for name, folder in folders.items():
        found[name] = Oracle(tiny_checkpoint)
        with torch.no_grad():
            for weight, change in changes(folder):
                found[name].model.get_parameter(weight).add_(change)
    return found


@pytest.fixture(scope="module")
def server(start_server, folders):
    arguments = "--dtype float32 --max-running-requests 8 --chunked-prefill-size 256 --enable-mixed-chunk "
    arguments += "--max-lora-rank 8 --max-loras-per-batch 4 --lora-target-modules all --lora-paths"
    with start_server(*arguments.split(), *(f"{name}={folders[name]}" for name in ADAPTERS)) as running:
        yield running


def ask(server: Server, prompt: list[int], adapter: str | None) -> tuple[Answer, dict]:
    body = {"input_ids": prompt, "return_logprob": True, "lora_path": adapter}
    body["sampling_params"] = {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    answer = server.post("/generate", body)
    logprobs = [logprob for logprob, *_ in answer["meta_info"]["output_token_logprobs"]]
    return Answer(answer["output_ids"], logprobs), answer["meta_info"]


def refusal(server: Server, path: str, body: dict) -> str:
    """What the server says to a request that it refuses with status 400."""
    with pytest.raises(urllib.error.HTTPError) as error:
        server.post(path, body)
    assert error.value.code == 400
    return error.value.read().decode()


@pytest.mark.parametrize("adapter", [None, *ADAPTERS])
@pytest.mark.parametrize("length", [40, 700])  # dense, and sparse in several chunks
def test_alone(server, oracles, adapter, length):
    prompt = random_prompt(length, VOCABULARY, seed=1)
    answer, _ = ask(server, prompt, adapter)
    oracles[adapter].check(prompt, answer, TOLERANCE)


def test_adapters_change_the_answer(oracles):
    """Otherwise the other tests would show nothing."""
    prompt = random_prompt(40, VOCABULARY, seed=1)
    plain = oracles[None].logprobs(prompt, [0])
    for name, oracle in oracles.items():
        assert name is None or (oracle.logprobs(prompt, [0]) - plain).abs().max() > 0.1


def test_all_in_one_batch(server, oracles):
    asked = [(None, 90), ("all", 70), ("some", 600), (None, 130), ("gates", 64), ("all", 300), ("some", 33)]
    prompts = [random_prompt(length, VOCABULARY, seed=2) for _, length in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: ask(server, one[1], one[0][0])[0], zip(asked, prompts, strict=True)))
    for (adapter, _), prompt, answer in zip(asked, prompts, answers, strict=True):
        oracles[adapter].check(prompt, answer, TOLERANCE)


def test_four_ranks(start_server, folders, oracles):
    """Every rank has its part of the adapters' outputs, and of k and v what goes to the KV head that it copies."""
    arguments = "--tp-size 4 --dtype float32 --max-running-requests 4 --chunked-prefill-size 256 --max-lora-rank 8 "
    arguments += "--max-loras-per-batch 3 --lora-target-modules all --lora-paths"
    asked = [("all", 70), (None, 90), ("gates", 600), ("all", 500)]
    prompts = [random_prompt(length, VOCABULARY, seed=6) for _, length in asked]
    with (
        start_server(*arguments.split(), *(f"{name}={folders[name]}" for name in ("all", "gates"))) as server,
        ThreadPoolExecutor(len(asked)) as pool,
    ):
        answers = list(pool.map(lambda one: ask(server, one[1], one[0][0])[0], zip(asked, prompts, strict=True)))
    for (adapter, _), prompt, answer in zip(asked, prompts, answers, strict=True):
        oracles[adapter].check(prompt, answer, TOLERANCE)


def test_cached_prefixes_are_kept_apart(server, oracles):
    prompt = random_prompt(200, VOCABULARY, seed=3)
    for adapter in (None, "all", "some"):
        first, told = ask(server, prompt, adapter)
        assert told["cached_tokens"] == 0
        again, told = ask(server, prompt, adapter)
        assert told["cached_tokens"] >= 128
        for answer in (first, again):
            oracles[adapter].check(prompt, answer, TOLERANCE)


def test_the_openai_client_names_an_adapter(server, oracles):
    prompt = random_prompt(50, VOCABULARY, seed=4)
    answer = server.client.completions.create(
        model="default:all",
        prompt=prompt,
        max_tokens=TOKENS,
        temperature=0,
        logprobs=1,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    (choice,) = answer.choices
    oracles["all"].check(prompt, Answer(choice.token_ids, choice.logprobs.token_logprobs), TOLERANCE)


def test_loaded_and_unloaded_while_the_server_runs(server, oracles, folders):
    prompt = random_prompt(150, VOCABULARY, seed=5)
    assert "late" in refusal(server, "/generate", {"input_ids": prompt, "lora_path": "late"})
    load = {"lora_name": "late", "lora_path": str(folders["late"])}
    server.post("/load_lora_adapter", load)
    assert "already loaded" in refusal(server, "/load_lora_adapter", load)
    # SGLang loads an adapter again that it had been told to unload, when a request names it.
    for _ in range(2):
        with ThreadPoolExecutor(4) as pool:
            asked = ("late", "all", None, "gates")
            answers = list(pool.map(lambda adapter: ask(server, prompt, adapter)[0], asked))
        for adapter, answer in zip(asked, answers, strict=True):
            oracles[adapter].check(prompt, answer, TOLERANCE)
        left = server.post("/unload_lora_adapter", {"lora_name": "late"})
        assert set(left["loaded_adapters"]) == set(ADAPTERS)


def damaged(folder: Path, copy: Path, **config) -> tuple[Path, dict]:
    """A copy of an adapter with other fields in its configuration, and its tensors to change."""
    copy.mkdir()
    found = json.loads((folder / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(found | config))
    return copy, load_file(folder / "adapter_model.safetensors")


DAMAGES = {
    "bias": ({"bias": "all"}, "bias = 'all'"),
    "whole layers": ({"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head']"),
    "rank": ({"r": 16}, "rank 16"),
    "target": ({"target_modules": ["q_proj", "w_pack"]}, "w_pack"),
    "head": ({"target_modules": ["lm_head"]}, "lm_head"),
    "decomposed": ({"use_dora": True}, "DoRA"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_adapter_that_cannot_be_served_is_refused(server, folders, tmp_path, name):
    config, words = DAMAGES[name]
    copy, tensors = damaged(folders["all"], tmp_path / "copy", **config)
    save_file(tensors, copy / "adapter_model.safetensors")
    assert words in refusal(server, "/load_lora_adapter", {"lora_name": "bad", "lora_path": str(copy)})


def test_tensors_of_another_model_are_refused_by_name(server, folders, tmp_path):
    copy, tensors = damaged(folders["all"], tmp_path / "copy")
    name = next(name for name in tensors if "q_proj.lora_A" in name)
    tensors[name.replace("q_proj", "query")] = tensors.pop(name)
    save_file(tensors, copy / "adapter_model.safetensors")
    said = refusal(server, "/load_lora_adapter", {"lora_name": "bad", "lora_path": str(copy)})
    assert "query.lora_A" in said and "self_attn.q_proj" in said


def test_nothing_is_held_afterwards(server):
    with pytest.raises(openai.BadRequestError, match="nobody"):
        server.client.completions.create(model="default:nobody", prompt="hello", max_tokens=1)
    assert server.is_running() and not any(server.idle_counters().values())


def test_weights_below_the_adapters_can_be_loaded_again(server, oracles, tiny_checkpoint):
    answer = server.post("/update_weights_from_disk", {"model_path": str(tiny_checkpoint)})
    assert answer["success"], answer
    prompt = random_prompt(90, VOCABULARY, seed=9)
    for adapter in (None, "all"):
        oracles[adapter].check(prompt, ask(server, prompt, adapter)[0], TOLERANCE)
