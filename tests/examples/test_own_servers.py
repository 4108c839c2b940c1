"""Examples that need a server with options of its own: adapters that come while it runs, and JSON without blanks."""

import json

import pytest

from testing.server import Server
from tests.conftest import TRAINED_ARGUMENTS

OPTIONS = "--enable-lora --max-lora-rank 8 --lora-target-modules all --constrained-json-disable-any-whitespace"


@pytest.fixture(scope="module")
def server(trained_checkpoint):
    with Server(trained_checkpoint, *TRAINED_ARGUMENTS, *OPTIONS.split()) as running:
        yield running


def test_lora_serving_of_what_lora_finetune_has_learned(trained_checkpoint, server, run_example, tmp_path):
    run_example("lora_finetune", trained_checkpoint, tmp_path / "voices")
    plain, adapted = run_example("lora_serving", server.base_url, tmp_path / "voices").splitlines()
    assert plain.startswith("default: ") and "hoots" not in plain
    assert adapted == "default:voices: The owl hoots."


def test_structured_output(server, run_example):
    text, parsed = run_example("structured_output", server.base_url).splitlines()
    assert json.loads(text) == {"sentence": "The code of the red fox is 4711."}
    assert parsed == "sentence='The code of the red fox is 4711.'"
