"""The trainer of drafts on a CPU: what is drafted where, that runs can be resumed, and what the committed drafts do."""

import json
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from tests.training.texts import conversations
from training.drafts import train
from training.drafts.conversations import Conversation, batch_numbers
from training.drafts.eagle3 import head_config
from training.drafts.evaluate import context_range, load_draft, measure, walk
from training.drafts.known_answers import own_answers
from training.drafts.target import Target

STEPS = 3
MAX_BYTES = 1 << 20  # of the committed head, weights, loss and card


@pytest.fixture(scope="module")
def target(trained_checkpoint):
    return Target(trained_checkpoint, "cpu", torch.float32)


@pytest.fixture(scope="module")
def conversation(trained_checkpoint):
    return conversations(trained_checkpoint, 200, 1, "drafts")[0]


class Known:
    """A draft that knows the text, or a shift of it, and the target's distributions at the same places."""

    def __init__(self, target, token_ids, shift=0):
        self.target, self.token_ids, self.shift = target, token_ids, shift

    def unroll(self, ids, states, embeds, bases, steps):
        last = self.target.states(ids)[1]
        for step in range(steps):
            at = (bases + 1 + step + self.shift).clamp(max=len(ids) - 1)
            yield self.target.logits(last[at])[:, self.token_ids]


def test_captured_states_are_outputs_of_layers(target, conversation):
    """What a head's configuration names i is the input of layer i + 1, as the server captures it."""
    ids = conversation.ids.long()
    layers = head_config(target.config, 1, 1)["eagle_config"]["eagle_aux_hidden_state_layer_ids"]
    inputs = target.model.model(ids[None], use_cache=False, output_hidden_states=True).hidden_states
    assert torch.equal(target.states(ids)[0], torch.cat([inputs[layer + 1][0] for layer in layers], dim=-1))


def some_tokens(conversation):
    """A third of those of the answers, and as many others."""
    return torch.cat([conversation.ids[begin:end] for begin, end in conversation.answers]).unique()[::3].long()


@pytest.mark.parametrize("reduced", [False, True])
def test_losses_are_those_of_the_same_tokens(target, conversation, reduced):
    """A draft with the target's distributions has their entropy as its loss, and one that is a token off much more."""
    token_ids = some_tokens(conversation) if reduced else torch.arange(target.config.vocab_size)
    drafted = train.draft(Known(target, token_ids), target, conversation, STEPS)
    _, last = target.states(conversation.ids.long())
    logits = target.logits(last)
    for step in range(STEPS):
        places = [torch.arange(begin + step, end - 1) for begin, end in conversation.answers if begin + step < end - 1]
        at = torch.cat(places)
        at = at[torch.isin(logits[at].argmax(-1), token_ids)]
        p = logits[at][:, token_ids].softmax(-1)
        torch.testing.assert_close(drafted.losses[step], -(p * p.clamp(min=1e-30).log()).sum(), rtol=1e-3, atol=1e-3)
    for shift in (-1, 1):
        off = train.draft(Known(target, token_ids, shift), target, conversation, STEPS)
        assert (off.losses > 3 * drafted.losses).all()


def test_a_draft_that_knows_the_answers_is_accepted(target, conversation):
    """sala-tiny's likeliest tokens are the answers of this text, each predicted from the token before it."""
    token_ids = torch.arange(target.config.vocab_size)
    drafted = train.draft(Known(target, token_ids), target, conversation, STEPS)
    assert torch.equal(drafted.right, drafted.tried)
    tokens = sum(end - begin for begin, end in conversation.answers)
    # Of an answer of n tokens all but the first can be drafted, from one base fewer with every step.
    expected = [tokens - (1 + step) * len(conversation.answers) for step in range(STEPS)]
    assert drafted.tried.sum(1).tolist() == expected and drafted.counts()[:, 2].tolist() == expected
    shifted = train.draft(Known(target, token_ids, shift=1), target, conversation, STEPS)
    assert shifted.right.float().mean() < 0.2


def test_own_answers_end_at_the_first_other_token(target, conversation):
    assert own_answers(target, conversation.ids.tolist(), conversation.answers) == conversation.answers
    ids = conversation.ids.tolist()
    ids[conversation.answers[1][1] - 2] += 1
    assert own_answers(target, ids, conversation.answers) == conversation.answers[:1]


def test_bases():
    conversation = Conversation(torch.zeros(20), [(5, 9), (12, 13), (15, 17)])
    positions, left = conversation.bases()
    assert positions.tolist() == [4, 5, 6, 14] and left.tolist() == [3, 2, 1, 1]


def test_steps_of_a_server():
    """Seven tokens follow the first of an answer; rows are steps, columns bases."""
    right = torch.tensor([[1, 1, 0, 0, 1, 1, 0], [0, 1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    drafted = train.Drafted(torch.zeros(2), torch.ones_like(right), right)
    # Base 0 accepts one draft, so base 2 follows, which accepts none, 3 none, and 4 two: with its own token that is it.
    assert walk(drafted, 0, 7) == 4
    assert drafted.counts().tolist() == [[7, 7, 4], [7, 4, 2]]
    assert [context_range(tokens) for tokens in (1, 256, 257, 5000)] == [256, 256, 512, 8192]


def test_every_conversation_once_per_epoch():
    batches = [batch_numbers(10, 4, 7, step) for step in range(6)]
    for epoch in (batches[:3], batches[3:]):
        assert sorted(chain(*epoch)) == list(range(10))
    assert batches[:3] != batches[3:] and batches[0] != batch_numbers(10, 4, 8, 0)


@pytest.mark.parametrize("kind", [["--draft-vocabulary", "300"], ["--dense", "1"]], ids=["head", "dense"])
def test_resumed_run_is_the_whole_run(tmp_path, monkeypatch, trained_checkpoint, kind):
    monkeypatch.setattr(train, "SAVE_STEPS", 2)
    monkeypatch.setattr(train, "LOG_STEPS", 1)
    texts = conversations(trained_checkpoint, 100, 3, "resume")
    lines = [{"sequences": [{"ids": text.ids.tolist(), "answers": text.answers}]} for text in texts]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def trainer(name):
        (tmp_path / name).mkdir(exist_ok=True)
        given = ["--model", str(trained_checkpoint), "--answers", str(tmp_path / "answers.jsonl")]
        given += ["--out", str(tmp_path / name), "--batch", "1", "--epochs", "2", "--learning-rate", "1e-3"]
        return train.Trainer(train.parse([*given, "--draft-steps", "2", *kind]))

    trainer("whole").run()
    first = trainer("cut")
    original = first.update

    def interrupted():
        if first.step == 3:
            raise KeyboardInterrupt
        return original()

    first.update = interrupted
    with pytest.raises(KeyboardInterrupt):
        first.run()
    trainer("cut").run()
    whole, cut = (torch.load(tmp_path / name / "training.pt", weights_only=True) for name in ("whole", "cut"))
    assert whole["step"] == cut["step"] == 6 and whole["rows"] == cut["rows"]
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, cut["model"][name]), name
    published = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert published[0] == published[1]
    loaded = load_draft(tmp_path / "whole").state_dict()
    assert loaded.keys() == whole["model"].keys()
    for name, tensor in whole["model"].items():
        assert torch.equal(loaded[name], tensor.bfloat16().to(loaded[name].dtype)), name
    assert whole["rows"][-1]["loss_1"] < whole["rows"][0]["loss_1"]


def test_frequent_tokens():
    text = SimpleNamespace(ids=torch.tensor([9, 9, 9, 5, 5, 7, 3, 3, 3]), answers=[(3, 6), (6, 8)])
    assert train.frequent_tokens([text], 10, 2).tolist() == [3, 5]
    assert train.frequent_tokens([text], 10, 5).tolist() == [0, 1, 3, 5, 7]
    assert train.frequent_tokens([text], 10, None).tolist() == list(range(10))


def test_contexts_are_counted_apart(target, trained_checkpoint):
    texts = conversations(trained_checkpoint, 200, 1, "a") + conversations(trained_checkpoint, 400, 1, "b")
    counted = measure(Known(target, torch.arange(target.config.vocab_size)), target, texts, STEPS)
    assert list(counted) == [256, 512]
    assert sum(entry.answers for entry in counted.values()) == sum(len(text.answers) for text in texts)
    assert all(entry.length > 3 for entry in counted.values())


def test_mixed_precision_of_a_gpu(target, conversation, trained_checkpoint):
    """A bfloat16 target under autocast, as on a GPU: losses of float32 up to rounding, and gradients everywhere."""
    head = load_draft(trained_checkpoint.with_name("sala-tiny-eagle3"))
    whole = train.draft(head, target, conversation, STEPS)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = train.draft(head, Target(trained_checkpoint, "cpu", torch.bfloat16), conversation, STEPS)
    torch.testing.assert_close(rounded.losses, whole.losses, rtol=0.1, atol=0.0)
    rounded.losses.sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in head.parameters())


def test_the_committed_head_is_accepted(target, trained_checkpoint):
    """Texts of its kind that it was not trained on; two drafts in three steps must hold at the least."""
    path = trained_checkpoint.with_name("sala-tiny-eagle3")
    assert sum(file.stat().st_size for file in path.iterdir()) < MAX_BYTES
    texts = conversations(trained_checkpoint, 300, 2, "committed head")
    counted = measure(load_draft(path).eval(), target, texts, STEPS).values()
    assert sum(entry.answers for entry in counted) >= 6
    assert sum(entry.tokens for entry in counted) > (1 + 2 / 3) * sum(entry.steps for entry in counted)
