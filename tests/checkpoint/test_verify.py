"""The check of a checkpoint against recorded continuations."""

import pytest
from transformers import AutoTokenizer

from sala_sglang.checkpoint import verify


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


def test_recorded_continuations():
    assert [len(tokens) for tokens in verify.RECORDED.values()] == [16, 16, 16]


def test_random_weights_differ_and_the_step_is_named(tiny_checkpoint, tokenizer, capsys):
    assert verify.run(tiny_checkpoint) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": DIFFERS")[0] for line in lines] == [repr(prompt) for prompt in verify.RECORDED]
    assert "DIFFERS at step 1 of 16: expected 1709 '', got " in lines[0]


def test_own_continuations_are_confirmed(tiny_checkpoint, capsys, monkeypatch):
    own = {}
    confirm = verify.continue_greedily

    def remember(model, tokenizer, prompt, tokens):
        own[prompt] = confirm(model, tokenizer, prompt, tokens)
        return own[prompt]

    monkeypatch.setattr(verify, "continue_greedily", remember)
    verify.run(tiny_checkpoint)
    monkeypatch.setattr(verify, "RECORDED", own)
    capsys.readouterr()
    assert verify.run(tiny_checkpoint) == 0
    assert capsys.readouterr().out.count(": OK, all ") == 3

    changed = dict(own)
    first = next(iter(own))
    changed[first] = (*own[first][:3], own[first][3] ^ 1, *own[first][4:])
    monkeypatch.setattr(verify, "RECORDED", changed)
    assert verify.run(tiny_checkpoint) == 1
    out = capsys.readouterr().out
    assert f"{first!r}: DIFFERS at step 4 of" in out and out.count(": OK") == 2


def test_an_early_end_is_a_difference(tokenizer):
    expected = (70, 71, 72)
    assert verify.compare(tokenizer, expected, expected) is None
    text = verify.compare(tokenizer, expected, expected[:2])
    assert text == f"DIFFERS at step 3 of 3: expected 72 {tokenizer.decode([72])!r}, got the end of the text"
