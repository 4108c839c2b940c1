"""Rows of a step: chains behind the last tokens where drafts pay, single rows where they do not."""

from array import array

import pytest

from sala_sglang.speculation.drafts import Drafts, RequestTokens
from sala_sglang.speculation.outlook import Outlook, pays

ROWS = 4


class Given:
    """A proposer that always proposes the same, and notes whom it shall forget."""

    def __init__(self, draft):
        self.draft, self.forgotten = draft, []

    def propose(self, rid, tokens):
        return self.draft

    def forget(self, rids):
        self.forgotten += rids


def requests(*tokens: list[int]) -> dict[str, RequestTokens]:
    return {f"r{i}": RequestTokens(given, [], []) for i, given in enumerate(tokens)}


def test_tokens_of_a_request_are_one_sequence():
    tokens = RequestTokens(array("q", [1, 2, 3]), [4, 5], [6])
    assert len(tokens) == 6 and tokens[:] == [1, 2, 3, 4, 5, 6]
    assert tokens[2:5] == [3, 4, 5] and tokens[5:] == [6] and tokens[6:] == [] and tokens[::2] == [1, 3, 5]
    assert (tokens[0], tokens[3], tokens[-1]) == (1, 4, 6)
    for begin in range(7):
        for end in range(7):
            assert tokens[begin:end] == [1, 2, 3, 4, 5, 6][begin:end]


@pytest.mark.parametrize("draft", [[7], [7, 8], [7, 8, 9], [7, 8, 9, 10, 11]])
def test_every_row_is_a_chain_of_all_rows(draft):
    """Whatever a proposer says: the last token, then its draft, as many rows as a step has."""
    drafts = Drafts(ROWS, Given(draft))
    rows = drafts.next_rows(requests([1, 2, 3], [4]))
    assert rows.shape == (2, ROWS) and rows.dtype == "int64"
    assert rows[:, 0].tolist() == [3, 4]
    kept = draft[: ROWS - 1]
    assert rows[0, 1 : 1 + len(kept)].tolist() == kept


def test_a_step_without_drafts_has_one_row():
    assert Drafts(ROWS, Given([])).next_rows(requests([1, 2], [3])).tolist() == [[2], [3]]


def test_requests_that_have_left_are_forgotten():
    proposer = Given([5])
    drafts = Drafts(ROWS, proposer)
    drafts.next_rows(requests([1], [2]))
    drafts.next_rows(requests([1]))
    assert proposer.forgotten == ["r1"]
    drafts.forget_all()
    assert proposer.forgotten == ["r1", "r0"]


def test_wrong_drafts_are_no_longer_verified_and_right_ones_are_again():
    """Drafts are compared with what came also where they were not verified."""
    drafts, tokens, widths = Drafts(ROWS, Given([9, 9, 9])), [1], []
    for following in [5] * 40 + [9] * 40:
        widths.append(drafts.next_rows(requests(tokens)).shape[1])
        tokens = [*tokens, following]
    assert widths[0] == ROWS and widths[39] == 1 and widths[-1] == ROWS
    assert widths[:40].count(ROWS) <= 16, "as many steps as it takes to find out"
    assert widths[40:].count(1) <= 4


def test_rates_follow_from_tokens_alone():
    outlook = Outlook()
    assert outlook.look_ahead([]) == 0
    assert outlook.look_ahead([1, 2, 3]) == pytest.approx(0.5 + 0.25 + 0.125)
    before = outlook.rate
    outlook.look_back([8, 9])  # the first sight of the request
    outlook.look_ahead([1, 2, 3])
    outlook.look_back([8, 9, 1, 2, 7])  # two came true, one did not
    assert outlook.rate != before
    outlook.look_ahead([1])
    outlook.look_back([8])  # another request of this name
    assert outlook.look_ahead([]) == 0


def test_more_requests_need_more_hope():
    """The further rows of a large batch cost a larger share of its step."""
    needed = [next(e for e in (i / 100 for i in range(400)) if pays([e] * n, ROWS)) for n in (1, 8, 32, 64)]
    assert needed == sorted(needed) and needed[0] < 0.25 and 0.5 < needed[2] < 1
    assert not pays([], ROWS) and not pays([0.0] * 3, ROWS)
