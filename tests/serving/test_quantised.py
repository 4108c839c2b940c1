"""Quantised checkpoints answer as the plain model with the weights that they stand for."""

import json
import urllib.error
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from testing.quantised_checkpoints import Recipe, dequantised, make_source, quantise
from testing.server import Server
from tests.serving.client import all_at_once, complete, generate, random_prompt
from tests.serving.oracle import Oracle

# SGLang's products for GPUs have 16 bits, and FP8 and int8 round activations too: no exact comparison there.
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="dequantised weights are served without CUDA")
TOLERANCE = 1e-4  # float32 as in test_equality: dequantised weights are exact
VOCABULARY, TOKENS = 400, 6
ARGUMENTS = "--dtype float32 --max-running-requests 4 --chunked-prefill-size 256"
GATES = ("o_gate", "z_proj")


@dataclass(frozen=True)
class Case:
    recipe: Recipe
    arguments: str = ""
    environment: dict[str, str] = field(default_factory=dict)


MIXED = {
    "k_proj": "compressed fp8 channel",
    "v_proj": "compressed fp8 channel",
    "o_gate": "compressed int8",
    "up_proj": "compressed fp8 tensor",
    "down_proj": "compressed fp8 block",
}
CASES = {
    # As the public checkpoint: the gates have 16 bits.
    "gptq": Case(Recipe("gptq", full=GATES, group=64)),
    # A rank has one query head and a copy of a KV head, and groups of inputs that are on other ranks.
    "gptq on ranks": Case(Recipe("gptq", group=32, bits=8, fields={"desc_act": True}), "--tp-size 4"),
    "awq": Case(Recipe("awq", full=("down_proj",), group=64)),
    "fp8 block on ranks": Case(Recipe("fp8 block", full=GATES), "--tp-size 2 --pp-size 2"),
    "fp8 static": Case(Recipe("fp8 static", full=("v_proj", "up_proj"))),
    "int8": Case(Recipe("int8", full=("k_proj",))),
    # One scheme of compressed-tensors beside the other, also inside merged layers. Products of few rows read codes and
    # scales; those of a prefill take the dequantised weight, as all products of the other cases do.
    "compressed, own products": Case(
        Recipe("compressed int", full=("z_proj",), mixed=MIXED),
        environment={"SALA_OWN_PRODUCTS": "rows"},
    ),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_source(tmp_path_factory.mktemp("quantised") / "source")


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def server(case, source, tmp_path_factory):
    checkpoint = quantise(source, tmp_path_factory.mktemp("quantised") / "checkpoint", case.recipe)
    arguments = *ARGUMENTS.split(), *case.arguments.split()
    with Server(checkpoint, *arguments, environment=case.environment) as running:
        yield running


@pytest.fixture(scope="module")
def oracle(case, source) -> Oracle:
    found = Oracle(source)
    with torch.no_grad():
        for name, weight in dequantised(source, case.recipe):
            found.model.get_parameter(name).copy_(weight)
    return found


def test_answers_are_those_of_the_dequantised_weights(server, oracle, source):
    for length in (1, 100, 600):
        prompt = random_prompt(length, VOCABULARY, seed=1)
        oracle.check(prompt, complete(server.client, prompt, TOKENS), TOLERANCE)
    # The rounding is no small thing: the weights before it give other answers.
    with pytest.raises(AssertionError):
        Oracle(source).check(prompt, complete(server.client, prompt, TOKENS), TOLERANCE)


def test_a_batch(server, oracle):
    prompts = [random_prompt(length, VOCABULARY, seed=2) for length in (70, 300, 500)]
    for prompt, (answer, _) in zip(prompts, all_at_once(generate, server, prompts, TOKENS), strict=True):
        oracle.check(prompt, answer, TOLERANCE)


def test_weights_cannot_be_replaced(server, oracle, source):
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post("/update_weights_from_disk", {"model_path": str(source)})
    assert "cannot be replaced" in json.load(refused.value)["message"]
    prompt = random_prompt(50, VOCABULARY, seed=3)
    oracle.check(prompt, complete(server.client, prompt, TOKENS), TOLERANCE)
    assert server.is_running()
