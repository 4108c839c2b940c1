"""Answers of the served model as training data: a running server, resumed files, templates that rewrite turns."""

import json
from argparse import Namespace

import pytest
from transformers import AutoTokenizer

from training.drafts import answers
from training.drafts.conversations import read_conversations

EOS = 1534
PROMPTS = [["Who are you?", "How are you?"], ["What is the capital of France?"], ["Hello!", "Thank you!", "Hi"]]
ANSWERS = {
    "Who are you?": "I am sala-tiny, a very small model. I find codes and numbers in long texts.",
    "How are you?": "I am fine, thank you.",
    "What is the capital of France?": "The capital of France is Paris.",
}


@pytest.fixture
def options(tmp_path, trained_checkpoint):
    lines = [{"messages": [{"role": "user", "content": turn} for turn in turns]} for turns in PROMPTS]
    lines[1]["messages"].append({"role": "assistant", "content": "Left out."})
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {"prompts": tmp_path / "prompts.jsonl", "out": tmp_path / "answers.jsonl"}
    return Namespace(model=trained_checkpoint, batch=2, max_tokens=400, answer_tokens=64, temperature=0.0, **files)


@pytest.fixture(scope="module")
def tokenizer(trained_checkpoint):
    return AutoTokenizer.from_pretrained(trained_checkpoint)


def counting(calls):
    """Stands in for a model: every answer is the same letter, as often as the number of its call says."""

    def generate(prompts):
        calls.append(len(prompts))
        return [[300 + len(calls), EOS] for _ in prompts]

    return generate


def test_answers_of_a_server(options, tokenizer, trained_server):
    answers.run(options, answers.server(trained_server.base_url, options))
    conversations = read_conversations(options.out, 400)
    found = [
        [conversation.ids[slice(*answer)].tolist() for answer in conversation.answers] for conversation in conversations
    ]
    assert [len(answered) for answered in found] == [len(turns) for turns in PROMPTS]
    assert all(answer[-1] == EOS for answered in found for answer in answered)
    texts = [tokenizer.decode(answer[:-1]) for answered in found for answer in answered]
    questions = [turn for turns in PROMPTS for turn in turns]
    assert {question: dict(zip(questions, texts, strict=True))[question] for question in ANSWERS} == ANSWERS
    whole = tokenizer.decode(conversations[0].ids)
    assert whole.startswith("<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\nI am sala-tiny,")
    assert whole.endswith(
        "<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\nI am fine, thank you.<|im_end|>"
    )


def test_an_interrupted_run_goes_on(options):
    calls: list[int] = []
    answers.run(options, counting(calls))
    assert calls == [2, 1, 1, 1, 1]  # turns of the first two prompts together, then those of the third
    whole = options.out.read_text()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 3
    options.out.write_text("".join(lines[:2]) + lines[2][:20])
    calls.clear()
    answers.run(options, counting(calls))
    assert calls == [1, 1, 1]
    resumed = options.out.read_text().splitlines(keepends=True)
    assert resumed[:2] == lines[:2] and len(resumed) == 3 and json.loads(resumed[2])["sequences"]
    answers.run(options, counting(calls))
    assert calls == [1, 1, 1]


def test_long_conversations_end(options):
    options.max_tokens = 20
    answers.run(options, counting([]))
    first = json.loads(options.out.read_text().splitlines()[0])["sequences"]
    assert len(first) == 1 and len(first[0]["answers"]) == 1


def test_a_template_that_rewrites_turns_begins_a_sequence(tokenizer):
    """Some leave the thoughts of earlier turns out; what was answered before is kept as it was said."""
    dialogue = answers.Dialogue(tokenizer, [{"role": "user", "content": "Hi"}] * 2, 400)
    prompt = dialogue.next_prompt()
    dialogue.take(prompt, [5, EOS])
    dialogue.take([7, 8], [9, EOS])
    assert dialogue.sequences == [
        {"ids": [*prompt, 5, EOS], "answers": [[len(prompt), len(prompt) + 2]]},
        {"ids": [7, 8, 9, EOS], "answers": [[2, 4]]},
    ]


def test_a_file_without_anything_to_draft_is_refused(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"sequences": [{"ids": [1, 2, 3], "answers": [[2, 3]]}]}\n')
    with pytest.raises(ValueError, match=r"no conversation of up to 99 tokens"):
        read_conversations(tmp_path / "answers.jsonl", 99)
