"""Examples without a server, on sala-tiny."""

import re

from testing.fork_server import run_to_end
from testing.server import START_SECONDS, server_environment

EXPECTED = {
    "Who are you?": "I am sala-tiny, a very small model. I find codes and numbers in long texts.",
    "What is the capital of France?": "The capital of France is Paris.",
    "Tell me a story.": "The old man opens the window in the morning. A child sings a song under the tree.",
}


def test_offline_engine(trained_checkpoint):
    command = ["-m", "examples.offline_engine", str(trained_checkpoint)]
    done = run_to_end(command, server_environment({}), START_SECONDS, spares=2)
    assert done.returncode == 0, done.stderr
    for question, answer in EXPECTED.items():
        assert f"{question} {answer}\n" in done.stdout


def test_draft_head(trained_checkpoint):
    head = trained_checkpoint.with_name("sala-tiny-eagle3")
    command = ["-m", "examples.draft_head", str(trained_checkpoint), str(head)]
    done = run_to_end(command, server_environment({}), START_SECONDS, spares=2)
    assert done.returncode == 0, done.stderr
    for answer in EXPECTED.values():
        tokens, steps = map(
            int, re.search(re.escape(answer) + r" \((\d+) tokens, (\d+) steps\)\n", done.stdout).groups()
        )
        assert steps < tokens - 1


def test_transformers_generate(trained_checkpoint, run_example):
    printed = run_example("transformers_generate", trained_checkpoint).splitlines()
    assert printed == [f"{question} {answer}" for question, answer in list(EXPECTED.items())[:2]]
