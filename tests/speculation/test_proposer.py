"""Prompt lookup proposes what followed the longest suffix that occurred before, as a search of everything finds it."""

import random
import time
import tracemalloc

import pytest

from sala_sglang.speculation.proposer import CANDIDATES, COMPARED_TOKENS, GRAM_TOKENS, PromptLookup, SuffixIndex


def search(tokens: list[int], count: int) -> list[int]:
    """The specification: over all earlier ends, the longest common suffix, the latest of equals; periods go on."""
    size, best, found = len(tokens), GRAM_TOKENS - 1, None
    for end in range(size - 1, GRAM_TOKENS - 1, -1):
        length = 0
        while length < min(end, COMPARED_TOKENS) and tokens[end - 1 - length] == tokens[size - 1 - length]:
            length += 1
        if length > best:
            best, found = length, end
    if found is None:
        return []
    return [tokens[found + i % (size - found)] for i in range(count)]


def text(seed: int, size: int, vocabulary: int) -> list[int]:
    """Words of a few tokens over and over, with noise."""
    draw = random.Random(seed)
    words = [[draw.randrange(vocabulary) for _ in range(draw.randrange(1, 9))] for _ in range(6)]
    tokens: list[int] = []
    while len(tokens) < size:
        tokens += draw.choice(words) if draw.random() < 0.9 else [draw.randrange(vocabulary)]
    return tokens[:size]


@pytest.mark.parametrize("vocabulary", [40, 73_448])
@pytest.mark.parametrize("seed", range(4))
def test_longest_suffix_as_a_search_finds_it(seed, vocabulary):
    """Built at any length and extended by any steps; fewer occurrences than are compared."""
    tokens, draw = text(seed, 260, vocabulary), random.Random(seed)
    for begin in (0, 1, 2, 3, 4, 50, 259):
        proposer, known = PromptLookup(5), begin
        while known < len(tokens):
            known = min(len(tokens), known + draw.randrange(1, 5))
            given = proposer.propose("name", tokens[:known])
            expected = search(tokens[:known], 5)
            # A match that has come true is kept: its suffix is as long as the longest, maybe not the latest.
            assert len(given) == len(expected)
            if given != expected:
                assert any(tokens[end : end + len(given)] == given for end in range(known))


@pytest.mark.parametrize("seed", range(8))
def test_at_once_and_by_tokens_find_equally_long_matches(seed):
    tokens = text(seed, 300, 50)
    index = SuffixIndex(tokens[:5])
    for end in range(6, len(tokens)):
        index.extend(tokens[end - 1 : end])
        fresh = SuffixIndex(tokens[:end])
        assert bool(index.continuation(3)) == bool(fresh.continuation(3))


def test_no_suffix_occurred_before():
    assert PromptLookup(3).propose("a", list(range(100))) == []
    assert PromptLookup(3).propose("a", []) == []
    assert PromptLookup(3).propose("a", [1, 2, 3]) == []
    assert PromptLookup(3).propose("a", [1, 2, 9, 1, 2]) == [], "two tokens are too few"


def test_longer_suffix_wins_over_a_later_one():
    tokens = [7, 1, 2, 3, 50, 60, 8, 1, 2, 3, 70, 80, 7, 1, 2, 3]
    assert PromptLookup(2).propose("a", tokens) == [50, 60]
    assert PromptLookup(2).propose("b", tokens[1:]) == [70, 80], "of two of the same length the later one"


def test_periods_go_on():
    assert PromptLookup(7).propose("a", [5, 6, 5, 6, 5, 6]) == [5, 6, 5, 6, 5, 6, 5]
    assert PromptLookup(3).propose("a", [9, 9, 9, 9]) == [9, 9, 9]


def test_another_request_of_the_same_name():
    proposer = PromptLookup(2)
    assert proposer.propose("a", [1, 2, 3, 4, 1, 2, 3]) == [4, 1]
    assert proposer.propose("a", [1, 2, 3, 5, 9, 9, 9, 1, 2, 3]) == [5, 9]
    assert proposer.propose("a", [1, 2, 3, 6, 1, 2, 3]) == [6, 1]


def test_forgotten_requests_leave_nothing():
    proposer = PromptLookup(2)
    proposer.propose("a", [1, 2, 3, 4, 1, 2, 3])
    proposer.forget(["a", "b"])
    assert not proposer.indexes


def test_many_occurrences_are_compared_up_to_a_bound():
    """Where one gram is everywhere, the latest occurrences count, and time does not grow with them."""
    tokens = [1, 2, 3, 4] * 20_000
    index = SuffixIndex(tokens)
    assert index.continuation(4) == [1, 2, 3, 4]
    assert len(index._earlier_ends(index_gram(tokens))) == CANDIDATES


def index_gram(tokens: list[int]) -> int:
    from sala_sglang.speculation.proposer import _grams

    return int(_grams(SuffixIndex(tokens[-GRAM_TOKENS:]).tokens)[0])


def test_memory_is_linear_in_the_context_and_a_step_is_short():
    """At 1,040,000 tokens: 40 bytes per token at most while the index is built, and steps of a fraction of a ms."""
    draw = random.Random(1)
    tokens = [draw.randrange(73_448) for _ in range(1_040_000)]
    tracemalloc.start()
    index = SuffixIndex(tokens)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held <= 17 * len(tokens) and peak <= 41 * len(tokens), (held, peak)
    seconds = []
    for begin in range(0, 4000, 2):
        started = time.perf_counter()
        index.extend(tokens[begin : begin + 2])
        index.continuation(3)
        seconds.append(time.perf_counter() - started)
    # The median: a busy machine may take the process off its core at any time.
    assert sorted(seconds)[len(seconds) // 2] < 0.3e-3
