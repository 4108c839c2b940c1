"""Standard arguments of forward(): followed to the letter, or refused with their name, value and what is allowed."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DataCollatorWithFlattening, DynamicCache

from sala_sglang.hf import SALACache

EQUAL = {"rtol": 1e-5, "atol": 1e-4}
IDS = torch.arange(5, 35)[None]


@pytest.fixture(scope="module")
def model(trained_checkpoint):
    with torch.no_grad():
        yield AutoModelForCausalLM.from_pretrained(trained_checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def logits(model):
    return model(IDS).logits


@pytest.mark.parametrize(
    "harmless",
    [
        {"output_attentions": None, "output_hidden_states": None, "return_dict": None},
        {"output_attentions": False, "head_mask": None, "is_causal": True, "output_router_logits": False},
        {"position_ids": torch.arange(30)},
        {"position_ids": torch.arange(30)[None]},
        {"cache_position": torch.arange(30)},
        {"attention_mask": torch.ones(1, 30)},
        {"logits_to_keep": 0},
        {"logits_to_keep": 300},
    ],
)
def test_arguments_that_change_nothing(model, logits, harmless):
    torch.testing.assert_close(model(IDS, **harmless).logits, logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("output_attentions", True, "output_attentions: got True; allowed: None or False"),
        ("output_hidden_states", [1, 2], r"output_hidden_states: got \[1, 2\]; allowed: True, False or None"),
        ("head_mask", torch.ones(12, 8), "head_mask: got a tensor of shape"),
        ("is_causal", False, "is_causal: got False; allowed: None or True"),
        ("position_ids", torch.arange(1, 31), r"position_ids: got \[1, 2.*allowed: positions that count up from \[0\]"),
        ("position_ids", torch.arange(29), r"position_ids: got a tensor of shape \[29\]"),
        ("position_ids", torch.arange(30.0), "position_ids: got a tensor .*float32; allowed: integers"),
        ("position_ids", torch.tensor([*range(20), *range(1, 11)]), "start again at 0"),
        ("cache_position", torch.arange(1, 31), "cache_position: got .*allowed: 0 to 29"),
        ("attention_mask", torch.ones(1, 1, 30, 30), r"attention_mask: expected shape \[1, 30\]"),
        ("attention_mask", torch.ones(1, 31), r"attention_mask: expected shape \[1, 30\]"),
        ("attention_mask", torch.full((1, 30), 2), "attention_mask: got values from 2 to 2; allowed: 0 and 1"),
        ("attention_mask", {"full_attention": None}, "attention_mask: got a dict"),
        ("past_key_values", DynamicCache(), "past_key_values: got a DynamicCache; allowed: a SALACache"),
        ("past_key_values", ((torch.ones(1), torch.ones(1)),), "past_key_values: got a tuple; allowed: a SALACache"),
        ("logits_to_keep", -1, "logits_to_keep: got -1"),
        ("labels", IDS[:, 1:], r"labels: got a tensor of shape \[1, 29\].*allowed: shape \[1, 30\]"),
        ("cu_seq_lens_q", torch.tensor([0, 10, 30]), r"cu_seq_lens_q: got \[0, 10, 30\]; allowed: that of the samples"),
        ("seq_idx", torch.ones(1, 30, dtype=torch.int), "seq_idx: got"),
        ("max_length_k", 10, "max_length_k: got 10"),
    ],
)
def test_values_that_cannot_be_followed(model, argument, value, message):
    with pytest.raises(ValueError, match=message):
        model(IDS, **{argument: value})


@pytest.mark.parametrize("name", ["token_type_ids", "encoder_hidden_states", "num_logits_to_keep", "typo"])
def test_unknown_arguments(model, name):
    with pytest.raises(TypeError, match=f"{name}: got 1, but MiniCPM-SALA has no such argument"):
        model(IDS, **{name: 1})


def test_inputs_of_the_wrong_shape(model):
    for ids in (IDS[0], IDS[:, :0]):
        with pytest.raises(ValueError, match="input_ids: got a tensor"):
            model(ids)
    for embeds in (torch.zeros(1, 30, 64), torch.zeros(30, 128)):
        with pytest.raises(ValueError, match="inputs_embeds: got a tensor"):
            model(inputs_embeds=embeds)


@pytest.mark.parametrize("name", ["sdpa", "flash_attention_2", "flex_attention", "paged|eager"])
def test_attention_implementations(trained_checkpoint, model, name):
    message = "attn_implementation: got '.*'; allowed: None or 'eager'"
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(trained_checkpoint, attn_implementation=name)
    with pytest.raises(ValueError, match=message):
        model.set_attn_implementation(name)


@pytest.mark.parametrize(("field", "value"), [("tie_word_embeddings", True), ("attention_dropout", 0.1)])
def test_fields_given_to_from_pretrained(trained_checkpoint, field, value):
    with pytest.raises(ValueError, match=f"{field} = {value} is not possible"):
        AutoModelForCausalLM.from_pretrained(trained_checkpoint, **{field: value})


def test_output_hidden_states(trained_checkpoint, model, logits):
    base = model.model(IDS, output_hidden_states=True)
    assert len(base.hidden_states) == model.config.num_hidden_layers + 1
    embedded = model.get_input_embeddings()(IDS) * model.config.scale_emb
    torch.testing.assert_close(base.hidden_states[0], embedded, rtol=0, atol=0)
    torch.testing.assert_close(base.hidden_states[-1], base.last_hidden_state, rtol=0, atol=0)
    # What the next layer gets of the whole is what a model of only the layers before it ends with.
    inputs = []
    hook = model.model.layers[5].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    output = model(IDS, output_hidden_states=True)
    hook.remove()
    torch.testing.assert_close(output.hidden_states[5], inputs[0][None], rtol=0, atol=0)
    torch.testing.assert_close(output.logits, logits, rtol=0, atol=0)

    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, :12] = 0
    padded = model(IDS.expand(2, -1), attention_mask=mask, output_hidden_states=True).hidden_states
    alone = model(IDS[:, 12:], output_hidden_states=True).hidden_states
    for in_batch, single in zip(padded, alone, strict=True):
        assert in_batch.shape == (2, 30, 128)
        torch.testing.assert_close(in_batch[1:, 12:], single, **EQUAL)

    asked = AutoModelForCausalLM.from_pretrained(trained_checkpoint, output_hidden_states=True)
    assert len(asked(IDS).hidden_states) == 13
    asked = AutoModelForCausalLM.from_pretrained(trained_checkpoint, output_attentions=True)
    with pytest.raises(ValueError, match="output_attentions: got True"):
        asked(IDS, output_attentions=None)


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_of_hidden_states(model, padded):
    mask = (torch.arange(30) >= 4).long()[None] if padded else None
    with torch.enable_grad():
        output = model(IDS, attention_mask=mask, labels=IDS, output_hidden_states=True)
        gradients = torch.autograd.grad(output.loss, output.hidden_states)
    assert all(gradient[0, 4:].any() for gradient in gradients)


def test_return_dict(trained_checkpoint, model, logits):
    as_tuple = model(IDS, labels=IDS, return_dict=False)
    assert as_tuple[0].ndim == 0
    torch.testing.assert_close(as_tuple[1], logits, rtol=0, atol=0)
    assert isinstance(as_tuple[2], SALACache)
    assert isinstance(model.model(IDS, return_dict=False), tuple)
    plain = AutoModelForCausalLM.from_pretrained(trained_checkpoint, dtype=torch.float32, return_dict=False)
    torch.testing.assert_close(plain(IDS)[0], logits, rtol=0, atol=0)


def test_positions_go_on_after_a_cache(model, logits):
    cache = SALACache()
    model(IDS[:, :20], past_key_values=cache, position_ids=torch.arange(20))
    with pytest.raises(ValueError, match=r"position_ids: got \[0, 1.*count up from \[20\]"):
        model(IDS[:, 20:], past_key_values=cache, position_ids=torch.arange(10))
    with pytest.raises(ValueError, match=r"attention_mask: got \[19\] tokens before this call; allowed: the \[20\]"):
        mask = torch.ones(1, 30)
        mask[0, 3] = 0
        model(IDS[:, 20:], past_key_values=cache, attention_mask=mask)
    rest = model(
        IDS[:, 20:], past_key_values=cache, position_ids=torch.arange(20, 30), attention_mask=torch.ones(1, 30)
    )
    torch.testing.assert_close(rest.logits, logits[:, 20:], **EQUAL)


def test_a_call_that_fails_leaves_the_cache_as_it_was(model, logits):
    cache = SALACache()
    model(IDS[:, :20], past_key_values=cache)

    def fail(module, args):
        raise RuntimeError("out of memory")

    hook = model.model.layers[6].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(IDS[:, 20:], past_key_values=cache)
    hook.remove()
    torch.testing.assert_close(model(IDS[:, 20:], past_key_values=cache).logits, logits[:, 20:], **EQUAL)


def test_a_call_of_padding_only(model, logits):
    cache = SALACache()
    model(IDS[:, :5], attention_mask=torch.zeros(1, 5), past_key_values=cache)
    torch.testing.assert_close(model(IDS, past_key_values=cache).logits, logits, rtol=0, atol=0)


def test_packed_samples_see_nothing_of_each_other(model):
    """As DataCollatorWithFlattening sends them, with all that it can send; short, sparse and single-token samples."""
    torch.manual_seed(0)
    samples = [torch.randint(5, 1300, (1, n)) for n in (1100, 1, 37)]
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch = collate([{"input_ids": ids[0].tolist()} for ids in samples])
    packed = model(**batch)
    assert packed.past_key_values is None
    alone = [model(ids, labels=ids) for ids in samples]
    expected = torch.cat([output.logits for output in alone], 1)
    torch.testing.assert_close(packed.logits, expected, **EQUAL)
    mean = (alone[0].loss * 1099 + alone[2].loss * 36) / 1135
    torch.testing.assert_close(packed.loss, mean, rtol=1e-5, atol=0)
    # Labels across the border of two samples count no more than the collator's -100.
    torch.testing.assert_close(model(**batch | {"labels": batch["input_ids"]}).loss, packed.loss)
    for cached in ({"use_cache": True}, {"past_key_values": SALACache()}):
        with pytest.raises(ValueError, match="position_ids: got 3 packed samples; allowed: one sample per row"):
            model(batch["input_ids"], position_ids=batch["position_ids"], **cached)


@pytest.mark.parametrize("left", [True, False])
def test_loss_of_a_padded_batch(model, left):
    """The mean over what each sample alone would predict; the first token of a sample is never predicted."""
    short, width = IDS[:, :18], IDS.shape[1]
    at = slice(width - 18, width) if left else slice(0, 18)
    ids, mask, labels = torch.full((2, width), 2), torch.zeros(2, width), torch.full((2, width), -100)
    for row, (where, own) in enumerate(((slice(0, width), IDS), (at, short))):
        ids[row, where], mask[row, where], labels[row, where] = own[0], 1, own[0]
    loss = model(ids, attention_mask=mask, labels=labels).loss
    expected = (model(IDS, labels=IDS).loss * 29 + model(short, labels=short).loss * 17) / 46
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_loss_arguments(model, logits):
    summed = torch.nn.functional.cross_entropy(logits[0, :-1], IDS[0, 1:], reduction="sum")
    torch.testing.assert_close(model(IDS, labels=IDS).loss, summed / 29)
    torch.testing.assert_close(model(IDS, labels=IDS, num_items_in_batch=100).loss, summed / 100)
    torch.testing.assert_close(model(IDS, labels=IDS, num_items_in_batch=torch.tensor(100)).loss, summed / 100)
    shifted = torch.nn.functional.pad(IDS[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(model(IDS, shift_labels=shifted).loss, summed / 29)
    torch.testing.assert_close(
        model(IDS, labels=IDS.where(IDS > 9, 3), ignore_index=3).loss, model(IDS, labels=IDS.where(IDS > 9, -100)).loss
    )
    with pytest.raises(ValueError, match="logits_to_keep: got 2; allowed: 0 together with labels"):
        model(IDS, labels=IDS, logits_to_keep=2)
    with pytest.raises(TypeError, match="reduction: got sum"):
        model(IDS, labels=IDS, reduction="sum")


def test_cache_operations(model, logits):
    cache = model(IDS[:, :20]).past_key_values
    cache.batch_repeat_interleave(3)
    many = model(IDS[:, 20:].expand(3, -1), past_key_values=cache).logits
    torch.testing.assert_close(many, logits[:, 20:].expand(3, -1, -1), **EQUAL)
    assert cache.batch_size == 3 and cache.get_max_length() == -1
    cache.batch_select_indices(torch.tensor([1]))
    assert cache.batch_size == 1 and cache
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)
    cache.reset()
    torch.testing.assert_close(model(IDS, past_key_values=cache).logits, logits, rtol=0, atol=0)
