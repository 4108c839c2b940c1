"""Whether a step verifies drafts: only where as many are likely to be accepted as pay for its further rows.

Drafts cost nothing to make. So they are made in every step, also where they are not verified, and compared with what
came instead: a request whose drafts fail makes no step longer, and one whose drafts begin to hold is noticed.
"""

from collections.abc import Sequence

FIRST_RATE = 0.5  # of drafts that hold, while nothing is known
MEMORY_TOKENS = 8  # over which the rate is averaged
# What a further row per request adds to a decode step, as a share of it: of one request, and per request more. By
# arithmetic from the decode steps of docs/benchmarks/results; not yet measured.
ROW_COST, ROW_COST_PER_REQUEST = 0.058, 0.0052


class Outlook:
    """How many of a request's drafts held lately."""

    def __init__(self) -> None:
        self.rate = FIRST_RATE
        self.draft: Sequence[int] = ()
        self.size = 0

    def look_back(self, tokens: Sequence[int]) -> None:
        """Compare the last draft with what came, in ``tokens``, all of the request's."""
        if len(tokens) < self.size:
            self.draft = ()
        for expected, found in zip(self.draft, tokens[self.size :], strict=False):
            self.rate += ((expected == found) - self.rate) / MEMORY_TOKENS
            if expected != found:
                break
        self.draft, self.size = (), len(tokens)

    def look_ahead(self, draft: Sequence[int]) -> float:
        """Take note of the next draft; returns how many of its tokens are likely to be accepted."""
        self.draft = draft
        return sum(self.rate**i for i in range(1, len(draft) + 1))


def pays(expected: Sequence[float], rows: int) -> bool:
    """Whether a step of ``rows`` rows per request is worth its time where so many drafts per request are expected."""
    requests = len(expected)
    cost = (rows - 1) * (ROW_COST + ROW_COST_PER_REQUEST * requests)
    return sum(expected) > cost * requests
