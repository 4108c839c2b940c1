"""The EAGLE3 head that was trained for sala-tiny: fewer steps, the same answers."""

from pathlib import Path

import pytest

from testing.server import Server
from tests.conftest import TRAINED_ARGUMENTS
from tests.serving.client import chat_prompt, generate
from tests.serving.test_speculation import assert_same

HEAD = Path(__file__).parents[2] / "checkpoints" / "sala-tiny-eagle3"
QUESTIONS = "Who are you?", "Tell me a story."


@pytest.mark.skipif(not HEAD.exists(), reason="needs checkpoints/sala-tiny-eagle3")
def test_trained_head(trained_server, trained_checkpoint):
    prompts = [chat_prompt(trained_checkpoint, question) for question in QUESTIONS]
    plain = [generate(trained_server, prompt, 60, ignore_eos=False)[0] for prompt in prompts]
    drafts = "--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(HEAD)
    with Server(trained_checkpoint, *drafts, *TRAINED_ARGUMENTS) as server:
        answers = [generate(server, prompt, 60, ignore_eos=False) for prompt in prompts]
        for (answer, _), expected in zip(answers, plain, strict=True):
            assert_same(answer, expected)
        accepted = [meta["spec_accept_length"] for _, meta in answers]
        assert max(accepted) > 1.5, accepted
        assert not any(server.idle_counters().values())
