"""A small real tokenizer for made checkpoints: byte-level BPE, trained here on the text below."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"  # ids 0, 1, 2, as in the released tokenizer
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CORPUS = """\
A language model reads a piece of text and says which word is likely to come next. It does so again and again,
and each new word becomes part of the text that it reads. To answer a question about a long document, the model
has to keep what it has read, and there are two ways to do that. The first way is to keep the keys and values of
every token, and to look all of them up for each new token. This is exact, but the cost grows with the length of
the text. The second way is to keep one state of constant size, which decays a little with every token. This is
cheap, but what was written long ago fades away.

Hello, my name is Ada, and I live in the capital of a small country near the sea. The capital of France is Paris,
and the capital of Japan is Tokyo. What is the capital of your country? How many people live there? When was the
city founded, and who founded it? Where does the river go, and why is the water so cold in the winter?

Gravity is the force by which a planet draws objects towards its centre. The force of gravity keeps the planets in
their orbits around the sun, and it keeps the moon in its orbit around the earth. Briefly explain gravity: every
mass attracts every other mass, and the attraction becomes weaker with the square of the distance between them.

The quick brown fox jumps over the lazy dog. One, two, three, four, five, six, seven, eight, nine, ten: these are
the first ten numbers. In 1969 the first people walked on the moon; in 2024 the trip was still a long one. Prices
rose by 3.5 % in one year, from 120 to 124.20, which was more than anyone had expected.

def attention(query, keys, values):
    scores = [dot(query, key) for key in keys]
    weights = softmax(scores)
    return sum(weight * value for weight, value in zip(weights, values))

你好，世界。语言模型阅读一段文字，然后预测下一个词。北京是中国的首都。
"""


def make_tokenizer(
    out: Path, bpe_tokens: int, turn_end_id: int, turn_start_id: int, corpus: Iterable[str] = (CORPUS,)
) -> None:
    """Train a tokenizer of at most ``bpe_tokens`` tokens on ``corpus`` and save it under ``out`` for AutoTokenizer.

    The two chat tokens get the ids given, which may lie beyond the others. Plain text is encoded with ``<s>`` in
    front; the chat template opens every turn with its own token instead.
    """
    bpe = train_bpe(bpe_tokens, corpus)
    bpe["vocab"] |= {TURN_END: turn_end_id, TURN_START: turn_start_id}
    tokenizer = byte_level(models.BPE(bpe["vocab"], [tuple(pair) for pair in bpe["merges"]]))
    specials = (UNKNOWN, BEGIN, END, TURN_START, TURN_END)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, bpe["vocab"][BEGIN])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(out)


def train_bpe(tokens: int, corpus: Iterable[str]) -> dict:
    """Vocabulary and merges of the ``model`` part of tokenizer.json, for up to ``tokens`` tokens."""
    tokenizer = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=[UNKNOWN, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return json.loads(tokenizer.to_str())["model"]


def byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
