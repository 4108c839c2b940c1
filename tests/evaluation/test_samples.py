"""How prompts are counted: by their sentences where a tokenizer allows it, and always as a whole prompt has them."""

import hashlib
import json
from random import Random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sala_sglang.checkpoint.tokenizer import CHAT_TEMPLATE
from sala_sglang.evaluation import language
from sala_sglang.evaluation.samples import MAX_DISTRACTORS, TASKS, SampleMaker
from tests.serving import transcripts

SPACE = "▁"


def sentencepiece_tokenizer(across_words: bool) -> PreTrainedTokenizerFast:
    """Like those of Llama and MiniCPM: a space in front of every text, and no words before the merges.

    across_words: trained on whole sentences, so that its tokens hold several words, and ends with beginnings.
    """
    rng = Random(5)
    texts = [" ".join(language.filler(rng) for _ in range(20)) for _ in range(200)]
    texts += ["Text: The codes of the pass key? What are 0 1 2 3 4 5 6 7 8 9.\n\n<|im_start|>user<|im_end|>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    if not across_words:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never")
    bytes_of_texts = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=bytes_of_texts, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Metaspace(SPACE)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def trained_tokenizer():
    return AutoTokenizer.from_pretrained(transcripts.CHECKPOINT)


@pytest.mark.parametrize("task", TASKS)
def test_a_long_prompt_is_counted_without_encoding_it(trained_tokenizer, monkeypatch, task):
    maker = SampleMaker(trained_tokenizer)
    encode, longest = maker._lengths, 0

    def count(texts):
        nonlocal longest
        longest = max(longest, *map(len, texts))
        return encode(texts)

    monkeypatch.setattr(maker, "_lengths", count)
    sample = maker.sample(Random(task), task, 100_000, depth=0.5)
    facts = MAX_DISTRACTORS + 2
    assert longest < (3 * facts + 2) * 75 < len(sample.message) / 8  # facts, and two sentences of every run of filler
    assert sample.tokens == maker.count(sample.message)
    assert 100_000 - max(maker.filler_tokens) < sample.tokens <= 100_000


def test_sentences_are_counted_as_they_are_behind_others():
    maker = SampleMaker(sentencepiece_tokenizer(across_words=False))
    assert maker.adds_up
    for task in TASKS:
        for depth in (0.0, 0.4, 1.0):
            sample = maker.sample(Random(task), task, 20_000, depth)
            assert sample.tokens == maker.count(sample.message)
            assert 20_000 - max(maker.filler_tokens) < sample.tokens <= 20_000


def test_where_sentences_do_not_add_up_the_whole_prompt_is_counted():
    maker = SampleMaker(sentencepiece_tokenizer(across_words=True))
    sample = maker.sample(Random(1), "key-value", 20_000, depth=0.5)
    assert not maker.adds_up
    assert sample.tokens == maker.count(sample.message) <= 20_000


def test_prompts_are_those_that_the_transcripts_answer(trained_tokenizer):
    messages = transcripts.messages(trained_tokenizer)
    digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
    assert digest == "ddfda5968d89a1919c2bce81cb5e41d88401bc5810b7f6e042835d5e5124458b"
    assert messages.keys() == json.loads(transcripts.FILE.read_text()).keys()
