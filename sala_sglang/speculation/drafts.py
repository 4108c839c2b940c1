"""The rows of the next step: the last token of every request, and drafts behind it where these are likely to pay."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy

from sala_sglang.speculation.outlook import Outlook, pays
from sala_sglang.speculation.proposer import PromptLookup, Proposer


class RequestTokens(Sequence[int]):
    """Prompt, answer and what the last step accepted as one sequence, of which only slices are copied."""

    def __init__(self, prompt: Sequence[int], answer: Sequence[int], accepted: Sequence[int]):
        self.parts = prompt, answer, accepted
        self.size = sum(map(len, self.parts))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, slice):
            (token,) = self[key : key + 1 or None]
            return token
        begin, end, step = key.indices(self.size)
        tokens: list[int] = []
        for part in self.parts:
            tokens += part[max(begin, 0) : max(end, 0)]
            begin, end = begin - len(part), end - len(part)
        return tokens[::step]


class Drafts:
    """What to verify next, by request."""

    def __init__(self, rows: int, proposer: Proposer | None = None):
        """rows: of a request in a step that verifies drafts, D."""
        self.rows = rows
        self.proposer = proposer or PromptLookup(rows - 1)
        self.outlooks: dict[str, Outlook] = {}

    def next_rows(self, requests: dict[str, RequestTokens]) -> numpy.ndarray:
        """Tokens of the next step [B, D], or [B, 1] where drafts are not worth it, int64.

        requests: all of the step by name, in order. Others are forgotten.
        """
        self._forget(self.outlooks.keys() - requests.keys())
        drafts, expected = [], []
        for rid, tokens in requests.items():
            outlook = self.outlooks.setdefault(rid, Outlook())
            outlook.look_back(tokens)
            drafts.append(list(self.proposer.propose(rid, tokens))[: self.rows - 1])
            expected.append(outlook.look_ahead(drafts[-1]))
        rows = self.rows if self.is_worth(expected) else 1
        # Every request has as many rows: where a draft is short, what follows it is anything.
        chains = [[tokens[-1], *draft] for tokens, draft in zip(requests.values(), drafts, strict=True)]
        return numpy.array([(chain + chain[-1:] * rows)[:rows] for chain in chains], dtype=numpy.int64)

    def is_worth(self, expected: Sequence[float]) -> bool:
        """Whether drafts are verified of which so many per request are expected to be accepted."""
        return pays(expected, self.rows)

    def forget_all(self) -> None:
        self._forget(list(self.outlooks))

    def _forget(self, rids: Collection[str]) -> None:
        self.proposer.forget(rids)
        for rid in rids:
            del self.outlooks[rid]
