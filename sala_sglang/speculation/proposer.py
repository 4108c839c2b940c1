"""What is likely to come next: the interface of a proposer of drafts, and prompt lookup, the one that serves."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy

GRAM_TOKENS = 3  # shortest suffix that is looked for
TOKEN_BITS = 21  # of a token id within the key of a gram; three fill an int64
CANDIDATES = 64  # most recent occurrences of a gram that are compared
COMPARED_TOKENS = 32  # by which the longest match is told, backwards from the end
_BACKWARDS = numpy.arange(1, COMPARED_TOKENS + 1)


class Proposer(Protocol):
    """Drafts of the tokens that follow a request's. Every rank has its own, and all must draft the same."""

    def propose(self, rid: str, tokens: Sequence[int]) -> Sequence[int]:
        """Up to D − 1 tokens, none where nothing suggests any.

        tokens: prompt and answer so far, of which slices are cheap. They go on from those of the last call with this
        ``rid``, unless it is another request.
        """

    def forget(self, rids: Iterable[str]) -> None:
        """These requests have left; one that comes back is as a new one."""


class PromptLookup:
    """What followed the longest suffix of a request's tokens where it occurred before, in prompt or answer."""

    def __init__(self, drafts: int):
        """drafts: tokens to propose at most."""
        self.drafts = drafts
        self.indexes: dict[str, SuffixIndex] = {}

    def propose(self, rid: str, tokens: Sequence[int]) -> Sequence[int]:
        index = self.indexes.get(rid)
        if index is None or not index.is_beginning_of(tokens):
            index = self.indexes[rid] = SuffixIndex(tokens[:])
        else:
            index.extend(tokens[len(index) :])
        return index.continuation(self.drafts)

    def forget(self, rids: Iterable[str]) -> None:
        for rid in rids:
            self.indexes.pop(rid, None)


class SuffixIndex:
    """Tokens of one request and where each of their grams, GRAM_TOKENS in a row, has ended.

    The first tokens are sorted by gram once, 16 bytes per token; those that are added go into a dictionary.
    """

    def __init__(self, tokens: Sequence[int]):
        self.tokens = numpy.array(tokens, dtype=numpy.int32)
        self.size = len(self.tokens)
        grams = _grams(self.tokens)
        order = numpy.argsort(grams, kind="stable").astype(numpy.int32)
        self.grams, self.ends = grams[order], order + GRAM_TOKENS
        self.added: dict[int, list[int]] = {}
        self.match: int | None = None  # the token after the suffix where it occurred before
        self.matched = False  # whether _match is that of all tokens

    def __len__(self) -> int:
        return self.size

    def is_beginning_of(self, tokens: Sequence[int]) -> bool:
        """Whether ``tokens`` seem to go on from those that are here: their last ones are compared."""
        last = self.tokens[max(0, self.size - GRAM_TOKENS) : self.size].tolist()
        return list(tokens[max(0, self.size - GRAM_TOKENS) : self.size]) == last

    def extend(self, tokens: Sequence[int]) -> None:
        """Append ``tokens``."""
        if not tokens:
            return
        begin, self.size = self.size, self.size + len(tokens)
        if self.size > len(self.tokens):
            self.tokens = numpy.concatenate([self.tokens, numpy.empty(self.size, dtype=numpy.int32)])
        self.tokens[begin : self.size] = tokens
        first = max(GRAM_TOKENS, begin + 1)  # tokens before the end of the first gram that is new
        for end, gram in enumerate(_grams(self.tokens[first - GRAM_TOKENS : self.size]).tolist(), first):
            self.added.setdefault(gram, []).append(end)
        # A match that foretold these tokens is still the longest one.
        if self.match is not None and self.tokens[self.match : self.match + len(tokens)].tolist() == list(tokens):
            self.match += len(tokens)
        else:
            self.matched = False

    def continuation(self, count: int) -> list[int]:
        """Up to ``count`` tokens that followed where the longest suffix occurred before; the later one of equals.

        A suffix that reaches into its own continuation is periodic, and goes on so.
        """
        if not self.matched:
            self.match, self.matched = self._longest_match(), True
        if self.match is None:
            return []
        found = self.tokens[self.match : min(self.match + count, self.size)].tolist()
        return [found[i % len(found)] for i in range(count)] if self.match + count > self.size else found

    def _longest_match(self) -> int | None:
        if self.size <= GRAM_TOKENS:
            return None
        ends = self._earlier_ends(int(_grams(self.tokens[self.size - GRAM_TOKENS : self.size])[0]))
        if len(ends) < 2:
            return ends[0] if ends else None
        before = numpy.array(ends)[:, None] - _BACKWARDS
        suffix = self.tokens[numpy.maximum(self.size - _BACKWARDS, 0)]
        equal = (self.tokens[numpy.maximum(before, 0)] == suffix) & (before >= 0)
        return ends[int(equal.cumprod(1).sum(1).argmax())]

    def _earlier_ends(self, gram: int) -> list[int]:
        """Where ``gram`` ended before the end of all tokens, the latest first."""
        ends = self.added.get(gram, [])[: -CANDIDATES - 2 : -1]
        left, right = numpy.searchsorted(self.grams, (gram, gram + 1))
        ends += self.ends[max(left, right - CANDIDATES - 1 + len(ends)) : right][::-1].tolist()
        return ends[1:] if ends and ends[0] == self.size else ends


def _grams(tokens: numpy.ndarray) -> numpy.ndarray:
    """Keys of all grams of ``tokens`` in order, int64."""
    mask = (1 << TOKEN_BITS) - 1
    count = max(0, len(tokens) - GRAM_TOKENS + 1)
    keys = numpy.zeros(count, dtype=numpy.int64)
    for i in range(GRAM_TOKENS):
        keys <<= TOKEN_BITS
        keys |= tokens[i : i + count] & mask
    return keys
