"""Batches of conversations as tokens. A batch depends on the seed and its step alone, so a run can be resumed."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch.utils.data import Dataset
from transformers import AutoTokenizer

from sala_sglang.evaluation import language
from training.conversations import TEXT_WEIGHT, THINKING_SHARE, Piece, conversation, small_talk
from training.tool_conversations import TOOLS, choose_tools, exchange, exchange_turns

SMALL_TALK_SHARE = 0.03
TOOLS_SHARE, TOOLS_LENGTHS = 0.5, range(512, 1025)  # of the rows of these lengths; tools take up to 300 tokens
FILLER_SENTENCES = 20_000
MAX_ASKED_DIGITS = 200  # per conversation
Row = tuple[list[int], list[float], list[int]]


@dataclass(frozen=True)
class Step:
    """A batch of ``rows`` conversations of up to ``length`` tokens, attended to densely or by selected blocks."""

    length: int
    rows: int
    selects_blocks: bool = False


class Batches(Dataset):
    """Item i is the batch of step ``first_step + i``: ids and weights [B, T], and asked positions [B, N] or −1."""

    def __init__(self, tokenizer: Path, plan: list[Step], seed: int, first_step: int = 0):
        self.path, self.plan, self.seed, self.first_step = tokenizer, plan, seed, first_step
        self.encoder: Encoder | None = None

    def __len__(self) -> int:
        return len(self.plan) - self.first_step

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.encoder is None:  # in the worker, since a tokenizer starts threads
            self.encoder = Encoder(self.path)
        number = self.first_step + index
        step = self.plan[number]
        rng = Random(f"{self.seed} {number}")
        return stack([self.encoder.row(rng, step.length) for _ in range(step.rows)], step.length)


class Encoder:
    """Makes rows: lists of token ids, weights, and positions before digits to be found."""

    def __init__(self, path: Path):
        tokenizer = AutoTokenizer.from_pretrained(path)
        self.render = tokenizer.apply_chat_template
        self.tokenizer = tokenizer.backend_tokenizer
        self.digits = set(tokenizer.convert_tokens_to_ids(list("0123456789")))
        rng = Random(0)
        self.filler = self.encode([" " + language.filler(rng) for _ in range(FILLER_SENTENCES)])

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [x.ids for x in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def row(self, rng: Random, length: int) -> Row:
        if length in TOOLS_LENGTHS and rng.random() < TOOLS_SHARE:
            ids, weights, asked = self.with_tools(rng, length)
        elif rng.random() < SMALL_TALK_SHARE:
            ids, weights, asked = self.talk(rng, length)
        else:
            ids, weights, asked = self.about_a_text(rng, length, THINKING_SHARE)
        ids, weights = ids[:length], weights[:length]
        return ids, weights, [p for p in asked if p < length - 1][:MAX_ASKED_DIGITS]

    def talk(self, rng: Random, length: int) -> Row:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            begin = len(ids)
            self.append(ids, weights, list(small_talk(rng)))
            weights[begin:] = [w * (begin == 0) for w in weights[begin:]]
        return ids, weights, []

    def with_tools(self, rng: Random, length: int) -> Row:
        """Tools, and exchanges until the row is full; its end may cut the last one."""
        names, messages = choose_tools(rng)
        system = self.render(messages or [{"role": "user", "content": ""}], [TOOLS[n] for n in names], tokenize=False)
        ids: list[int] = []
        weights: list[float] = []
        self.append(ids, weights, [Piece(system.split("<|im_start|>user")[0], 0.0)])
        asked: list[int] = []
        while len(ids) < length:
            asked += self.append(ids, weights, list(exchange_turns(rng, exchange(rng, names))))
        return ids, weights, asked

    def about_a_text(self, rng: Random, length: int, thinking_share: float = 0.0) -> Row:
        opening, facts, turns = conversation(rng, length, thinking_share)
        ids: list[int] = []
        weights: list[float] = []
        self.append(ids, weights, opening)
        tail: list[int] = []
        tail_weights: list[float] = []
        asked = self.append(tail, tail_weights, turns)
        text = self.text(rng, facts, length - len(ids) - len(tail))
        ids += text
        weights += [TEXT_WEIGHT] * len(text)
        shift = len(ids)
        return ids + tail, weights + tail_weights, [p + shift for p in asked]

    def text(self, rng: Random, facts: list[str], tokens: int) -> list[int]:
        """Facts at random places among filler, at most ``tokens`` and within one sentence of it if the facts fit."""
        sentences = self.encode([" " + fact for fact in facts])
        left = tokens - sum(map(len, sentences))
        fillers = []
        while left > 0:
            sentence = rng.choice(self.filler)
            fillers.append(sentence)
            left -= len(sentence)
        if fillers:
            fillers.pop()
        places = sorted(rng.randrange(len(fillers) + 1) for _ in sentences)
        merged, used = [], 0
        for place, fact in zip(places, sentences, strict=True):
            for sentence in fillers[used:place]:
                merged += sentence
            merged += fact
            used = place
        for sentence in fillers[used:]:
            merged += sentence
        return merged

    def append(self, ids: list[int], weights: list[float], pieces: list[Piece]) -> list[int]:
        """Add the pieces' tokens; returns the positions whose next token is a digit to be found."""
        asked = []
        for piece, tokens in zip(pieces, self.encode([p.text for p in pieces]), strict=True):
            if piece.find:
                asked += [len(ids) + i - 1 for i, token in enumerate(tokens) if token in self.digits]
            ids += tokens
            weights += [piece.weight] * len(tokens)
        return asked


def stack(rows: list[Row], length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows padded at the end, where nothing has weight."""
    most = max(1, max(len(asked) for _, _, asked in rows))
    ids = torch.tensor([ids + [2] * (length - len(ids)) for ids, _, _ in rows])
    weights = torch.tensor([weights + [0.0] * (length - len(weights)) for _, weights, _ in rows])
    asked = torch.tensor([asked + [-1] * (most - len(asked)) for _, _, asked in rows])
    return ids, weights, asked
