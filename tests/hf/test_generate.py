"""generate() of transformers with this model: every argument works, or is refused by name."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    TextIteratorStreamer,
)

from sala_sglang.hf import SALACache

IDS = torch.arange(5, 35)[None]


@pytest.fixture(scope="module")
def model(trained_checkpoint):
    return AutoModelForCausalLM.from_pretrained(trained_checkpoint, dtype=torch.float32).eval()


def generate(model, ids=IDS, **arguments):
    return model.generate(ids, **{"max_new_tokens": 8, "do_sample": False} | arguments)


@pytest.fixture(scope="module")
def greedy(model):
    return generate(model)


@pytest.mark.parametrize(
    "harmless",
    [
        {"cache_implementation": "dynamic"},
        {"use_cache": False},
        {"prefill_chunk_size": 7},
        {"position_ids": torch.arange(30)[None]},
        {"attention_mask": torch.ones(1, 30, dtype=torch.long)},
        {"custom_generate": lambda model, ids, **others: type(model)._sample(model, ids, **others)},
        {"low_memory": True},
        {"max_time": 1000.0},
        {"sequence_bias": [[[7], 0.0]]},
    ],
)
def test_arguments_that_change_nothing(model, greedy, harmless):
    assert generate(model, **harmless).tolist() == greedy.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_lookup_num_tokens": 3}, "assisted generation is not supported with stateful models"),
        ({"past_key_values": DynamicCache()}, "past_key_values: got a DynamicCache; allowed: a SALACache"),
        ({"cache_implementation": "static"}, "cache_implementation: got 'static'; allowed: None or 'dynamic'"),
        ({"cache_implementation": "offloaded"}, "cache_implementation: got 'offloaded'"),
        ({"cache_implementation": "quantized"}, "cache_implementation: got 'quantized'"),
        ({"cache_implementation": "paged"}, "continuous batching .* is not supported"),
        ({"cache_config": {"nbits": 4}}, "cache_config: got"),
        ({"max_cache_len": 100}, "max_cache_len: got 100; allowed: None"),
        ({"output_attentions": True}, "output_attentions: got True"),
        ({"position_ids": torch.arange(4, 34)[None]}, r"position_ids: got \[4, 5"),
        ({"labels": IDS}, "labels: got"),
        ({"head_mask": torch.ones(1)}, "not used by the model: .*head_mask"),
        ({"attention_mask": torch.tensor([[1] * 20 + [0] * 10])}, "attention_mask: got padding on the right"),
        ({"use_cache": False, "past_key_values": SALACache()}, "use_cache: got False"),
    ],
)
def test_arguments_that_cannot_be_followed(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(model, **arguments)


def test_no_assistant_and_no_continuous_batching(model):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    other = LlamaForCausalLM(LlamaConfig(vocab_size=model.config.vocab_size, **sizes)).eval()
    with pytest.raises(ValueError, match="assistant_model: a MiniCPM-SALA cannot take back"):
        generate(other, assistant_model=model)
    with pytest.raises(ValueError, match="continuous batching"):
        model.generate_batch([[5, 6, 7]], max_new_tokens=4)


def test_cached_columns_must_fit_the_inputs(model, greedy):
    cache = SALACache()
    generate(model, past_key_values=cache)
    held = cache.get_seq_length()
    message = "input_ids: got .* columns after those of past_key_values"
    for ids in (IDS, greedy[:, :held], IDS[:, :5]):
        with pytest.raises(ValueError, match=message):
            generate(model, ids, past_key_values=copy.deepcopy(cache))
    whole = torch.cat((greedy[:, :held], IDS[:, :5]), 1)
    with pytest.raises(ValueError, match="prefill_chunk_size: got 4"):
        generate(model, whole, past_key_values=copy.deepcopy(cache), prefill_chunk_size=4)
    expected = generate(model, whole)[:, held:].tolist()
    assert generate(model, whole, past_key_values=copy.deepcopy(cache))[:, held:].tolist() == expected
    mask = torch.ones_like(whole)
    assert generate(model, IDS[:, :5], past_key_values=copy.deepcopy(cache), attention_mask=mask).tolist() == expected


def test_second_turn_of_a_padded_batch(model):
    """The mask of everything names the padding of the first turn."""
    first = torch.cat((IDS, torch.cat((torch.full((1, 12), 2), IDS[:, 12:]), 1)))
    mask = (torch.arange(30) >= torch.tensor([[0], [12]])).long()
    cache = SALACache()
    turn = generate(model, first, attention_mask=mask, past_key_values=cache, min_new_tokens=8)
    both = torch.cat((turn, IDS[:, :9].expand(2, -1)), 1)
    mask = torch.cat((mask, torch.ones(2, 17, dtype=torch.long)), 1)
    second = generate(model, both, attention_mask=mask, past_key_values=cache)
    for row, begin in enumerate((0, 12)):
        alone = generate(model, both[row : row + 1, begin:])[0].tolist()
        assert second[row, begin:].tolist()[: len(alone)] == alone


def test_inputs_embeds(model, greedy):
    embeds = model.get_input_embeddings()(IDS)
    assert generate(model, None, inputs_embeds=embeds).tolist() == greedy[:, 30:].tolist()
    with pytest.raises(ValueError, match="prefill_chunk_size: got 7"):
        generate(model, None, inputs_embeds=embeds, prefill_chunk_size=7)


def test_beams_are_the_same_with_and_without_a_cache(model):
    beams = {"num_beams": 4, "num_return_sequences": 4}
    assert generate(model, **beams).tolist() == generate(model, **beams, use_cache=False).tolist()


def test_classifier_free_guidance_is_the_same_with_and_without_a_cache(model):
    guided = {"guidance_scale": 3.0, "negative_prompt_ids": IDS[:, :9]}
    assert generate(model, **guided).tolist() == generate(model, **guided, use_cache=False).tolist()


def test_several_samples_of_one_prompt(model):
    torch.manual_seed(0)
    assert generate(model, do_sample=True, num_return_sequences=3, temperature=2.0)[:, :30].tolist() == 3 * IDS.tolist()


def test_scores_and_hidden_states(model, greedy):
    said = generate(
        model, return_dict_in_generate=True, output_scores=True, output_logits=True, output_hidden_states=True
    )
    assert said.sequences.tolist() == greedy.tolist()
    assert torch.stack(said.logits).argmax(-1).flatten().tolist() == greedy[0, 30:].tolist()
    assert [len(step) for step in said.hidden_states] == 8 * [13]
    assert [step[0].shape[1] for step in said.hidden_states] == [30] + 7 * [1]
    scores = model.compute_transition_scores(said.sequences, said.scores, normalize_logits=True)
    torch.testing.assert_close(scores, torch.stack(said.scores, 1).log_softmax(-1).amax(-1), rtol=0, atol=1e-4)


def test_streamer_and_stop_strings(trained_checkpoint, model, greedy):
    tokenizer = AutoTokenizer.from_pretrained(trained_checkpoint)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    generate(model, streamer=streamer)
    text = tokenizer.decode(greedy[0, 30:], skip_special_tokens=True)
    assert "".join(streamer) == text
    word = text.split()[1]
    stopped = generate(model, stop_strings=[word], tokenizer=tokenizer)
    assert stopped.shape[1] < greedy.shape[1]
    assert tokenizer.decode(stopped[0, 30:]).rstrip().endswith(word)
