"""The trainer on a CPU, for a few steps: its data, and that an interrupted run ends as a whole one does."""

import argparse
from random import Random

import pytest
import torch
from transformers import AutoTokenizer

from sala_sglang.evaluation import language
from training.data import Batches, Encoder, Step
from training.evaluate import answer_groups
from training.tokenizer import load_or_make_tokenizer
from training.tool_conversations import TOOLS, written_call
from training.train import Recipe, Stage, Trainer, whole_rate

RECIPE = Recipe((Stage(2, 256, 1088), Stage(2, 1088, 1088, mixed=True)), whole_rate, muon=True)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    load_or_make_tokenizer(path)
    return path


def trainer(out):
    options = argparse.Namespace(out=out, start=None, seed=3, workers=0)
    return Trainer(options, RECIPE)


def distance(one, other):
    return sum(float((tensor - other[name]).square().sum()) for name, tensor in one.items()) ** 0.5


def test_resumed_run_is_the_whole_run(tmp_path, monkeypatch):
    monkeypatch.setattr("training.train.SAVE_STEPS", 2)
    for name in ("whole", "cut", "new"):
        (tmp_path / name).mkdir()
    trainer(tmp_path / "whole").run()
    first = trainer(tmp_path / "cut")
    original = first.train_step

    def interrupted(*batch):
        if first.step == 3:
            raise KeyboardInterrupt
        return original(*batch)

    first.train_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        first.run()
    trainer(tmp_path / "cut").run()
    whole, cut = (torch.load(tmp_path / name / "training.pt", weights_only=True) for name in ("whole", "cut"))
    assert whole["step"] == cut["step"] == 4
    # Sums in another order move single weights, whose first updates go by the sign of their gradients.
    moved = distance(whole["model"], dict(trainer(tmp_path / "new").model.named_parameters()))
    assert distance(whole["model"], cut["model"]) < 0.05 * moved
    assert {path.name for path in (tmp_path / "cut").iterdir()} >= {"model.safetensors", "config.json", "loss.csv"}


@pytest.mark.parametrize("length", [256, 300, 1024, 4096])
def test_rows_are_what_the_chat_template_makes(tokenizer_path, length):
    """Pieces are tokenised one by one for speed; the tokens must be those of the whole text."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(tokenizer_path), Encoder(tokenizer_path)
    ids, weights, asked = encoder.about_a_text(Random(length), length)
    assert length - 20 < len(ids) <= length and len(weights) == len(ids)
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    turn, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    message = {"role": "user", "content": text.removeprefix(turn).split(end)[0]}
    prompt = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    assert text.startswith(prompt)
    assert all(tokenizer.decode(ids[p + 1]).isdigit() and weights[p + 1] == 1 for p in asked)


CONVERSATION = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Save both."},
    {
        "role": "assistant",
        "reasoning_content": "I call save_note.",
        "content": "Both:",
        "tool_calls": [
            {"type": "function", "function": {"name": "save_note", "arguments": {"text": "a < b\n"}}},
            {"type": "function", "function": {"name": "fill_box", "arguments": {"animal": "shy owl", "number": 4711}}},
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "done"},
    {"role": "tool", "tool_call_id": "2", "content": '{"status": "done"}'},
    {"role": "assistant", "content": "\n\nThey are saved."},
]
WRITTEN = """\
<|im_start|>user
Save both.<|im_end|>
<|im_start|>assistant
<think>
I call save_note.
</think>

Both:
<function name="save_note"><param name="text"><![CDATA[a < b
]]></param></function>
<function name="fill_box"><param name="animal">shy owl</param><param name="number">4711</param></function><|im_end|>
<|im_start|>user
<tool_response>
done
</tool_response>
<tool_response>
{"status": "done"}
</tool_response><|im_end|>
<|im_start|>assistant
They are saved.<|im_end|>
"""


def test_what_the_chat_template_writes(tokenizer_path, trained_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(trained_checkpoint).chat_template
    whole = tokenizer.apply_chat_template(CONVERSATION, [TOOLS["get_code"]], tokenize=False)
    system, turns = whole.split("<|im_end|>\n", 1)
    assert system.startswith("<|im_start|>system\nBe kind.\n\n# Tools") and '{"name": "get_code"' in system
    assert turns == WRITTEN
    for name, arguments in (("save_note", {"text": "a < b\n"}), ("fill_box", {"animal": "shy owl", "number": 4711})):
        assert written_call(name, arguments) in whole
    for choice, end in {None: "", True: "<think>\n", False: "<think>\n\n</think>\n\n"}.items():
        prompt = tokenizer.apply_chat_template(
            CONVERSATION[:2], tokenize=False, add_generation_prompt=True, enable_thinking=choice
        )
        assert prompt.endswith(f"<|im_start|>assistant\n{end}")


@pytest.mark.parametrize("length", [512, 1024])
def test_rows_with_tools_are_what_the_tokenizer_makes(tokenizer_path, length):
    tokenizer, encoder = AutoTokenizer.from_pretrained(tokenizer_path), Encoder(tokenizer_path)
    for seed in range(5):
        ids, weights, asked = encoder.with_tools(Random(seed), length)
        assert len(ids) >= length and len(weights) == len(ids) and 0 < sum(weights[:length]) < length / 2
        assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) == ids
        assert all(tokenizer.decode(ids[p + 1]).isdigit() and weights[p + 1] == 1 for p in asked)


def test_batches_depend_on_seed_and_step_alone(tokenizer_path):
    plan = [Step(256, 2)] * 3
    whole, later = Batches(tokenizer_path, plan, seed=1), Batches(tokenizer_path, plan, seed=1, first_step=2)
    for one, other in zip(whole[2], later[0], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(whole[0][0], whole[1][0])


def test_numbers_of_an_answer_are_judged_one_by_one():
    assert answer_groups([4, 5, 6, 7, 20, 21, 40]) == [(0, 4), (4, 6), (6, 7)]


def test_words_of_keys_are_distinct_and_not_in_the_filler():
    filler = " ".join(language.PEOPLE + language.ACTIONS + language.PLACES + language.TIMES).lower().split()
    words = [*language.ADJECTIVES, *language.ANIMALS]
    assert len(set(words)) == len(words) and not set(words) & {*filler}
