"""The evaluation of calls: its turns are those of the chat template, and right where greedy decoding writes them."""

from random import Random
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from sala_sglang.hf import MiniCPMSALAForCausalLM
from training.evaluate_tools import END, THINKING, kind, margin, measure, turns
from training.tool_conversations import TOOLS, choose_tools, exchange

KINDS = {
    "no tool", "one code", "two codes, parallel calls", "a number into a box", "a note", "a note with <",
    "a note with &", "a note with a line break",
}  # fmt: skip
RIGHT, WRONG = 5.0, -3.0  # margins of Parrot
VOCABULARY = 1536


class Parrot:
    """Every next token of its input is the likeliest one, but where the next token is ``wrong``."""

    device = "cpu"

    def __init__(self, vocabulary: int, wrong: int = -1):
        self.vocabulary, self.wrong = vocabulary, wrong

    def __call__(self, inputs: torch.Tensor, use_cache: bool, logits_to_keep: int) -> SimpleNamespace:
        following = inputs.roll(-1)
        heights = torch.where(following == self.wrong, WRONG, RIGHT)
        logits = torch.zeros(*inputs.shape, self.vocabulary).scatter(-1, following[..., None], heights[..., None])
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


@pytest.fixture(scope="module")
def tokenizer(trained_checkpoint):
    return AutoTokenizer.from_pretrained(trained_checkpoint)


@pytest.mark.parametrize("thinking", THINKING.values(), ids=THINKING)
def test_turns_are_what_the_chat_template_writes(tokenizer, thinking):
    kinds = set()
    for seed in range(60):
        rng = Random(seed)
        names, messages = choose_tools(rng)
        asked = exchange(rng, names)
        kinds.add(kind(asked))
        tools = [TOOLS[name] for name in names]
        calls = [{"function": {"name": name, "arguments": arguments}} for name, arguments in asked.calls]
        said = [*messages, {"role": "user", "content": asked.question}]
        told = [{"role": "tool", "content": result} for result in asked.results]
        steps = [("call", {"content": "", "tool_calls": calls}, told)] if calls else []
        found = turns(tokenizer, names, messages, asked, thinking)
        for (turn, message, results), (name, prompt, text) in zip(
            [*steps, ("answer", {"content": asked.answer}, [])], found, strict=True
        ):
            thought = text.split("\n</think>")[0] if thinking else ""
            whole = [*said, {"role": "assistant", "reasoning_content": thought, **message}]
            written = (prompt + text + "\n").replace("<think>\n\n</think>\n\n", "")  # what stands for no thought
            assert (name, written) == (turn, tokenizer.apply_chat_template(whole, tools, tokenize=False))
            said += [{"role": "assistant", **message}, *results]
    assert kinds == KINDS


def test_one_wrong_token_is_seen():
    prompt, expected = [7, 8, 9], [20, 21, 22, 23]
    assert margin(Parrot(VOCABULARY), prompt, expected) == RIGHT
    for token in expected:
        assert margin(Parrot(VOCABULARY, token), prompt, expected) == WRONG
    for token in prompt:
        assert margin(Parrot(VOCABULARY, token), prompt, expected) == RIGHT


# A mark, and the choices of thinking whose turns have it.
@pytest.mark.parametrize(("mark", "wrong"), [(None, ()), (END, THINKING), ("</think>", ("on",))])
def test_every_choice_of_thinking_is_measured(tokenizer, mark, wrong):
    parrot = Parrot(VOCABULARY, tokenizer.convert_tokens_to_ids(mark) if mark else -1)
    rows = measure(parrot, tokenizer, exchanges=3, seed=1)
    assert {row["thinking"] for row in rows} == set(THINKING)
    for row in rows:
        expected = (0, "") if row["thinking"] in wrong else (row["turns"], RIGHT)
        assert (row["right"], row["least_margin_nats"]) == expected, row


def test_a_turn_is_right_where_greedy_decoding_writes_it(trained_checkpoint, tokenizer):
    model = MiniCPMSALAForCausalLM.from_pretrained(trained_checkpoint, dtype=torch.float32).eval()
    text = "Text: The code of the red fox is 4711. The nurse drinks warm tea.\n\nWhat is the code of the red fox?"
    chat = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    answer = f"The code of the red fox is 4711.{END}"
    expected = tokenizer.encode(answer, add_special_tokens=False)
    written = model.generate(torch.tensor([prompt]), max_new_tokens=len(expected), do_sample=False)
    assert tokenizer.decode(written[0, len(prompt) :]) == answer and margin(model, prompt, expected) > 0
    other = tokenizer.encode(answer.replace("4711", "4712"), add_special_tokens=False)
    assert margin(model, prompt, other) < 0
