"""Requests that run out of tokens, and batches that do not mix, in front of SGLang's own functions."""

from http import HTTPStatus
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.managers.schedule_policy import AddReqResult

from sala_sglang.plugin import scheduler_requests

VOCABULARY = 100
LOWEST_TEMPERATURE = 1e-6  # SGLang takes lower ones for greedy


def masked(greedy: bool) -> torch.Tensor:
    """Logits of three requests after a mask that leaves nothing, a part, everything."""
    logits = torch.linspace(-30, 30, 3 * VOCABULARY).view(3, VOCABULARY)
    mask = torch.zeros_like(logits)
    mask[0], mask[1, 5:] = -torch.inf, -torch.inf
    state = SimpleNamespace(
        grammar_mask=object(), acc_additive_penalties=None, penalizer_orchestrator=None, is_all_greedy=greedy
    )
    scheduler_requests.keep_a_choice(lambda info, logits: logits.add_(mask), state, logits)
    return logits


def test_a_mask_that_leaves_nothing_leaves_a_choice():
    logits, exact = masked(greedy=False), masked(greedy=True)
    assert torch.isinf(exact[0]).all()
    for temperature in (1.0, LOWEST_TEMPERATURE):
        probabilities = torch.softmax(logits / temperature, -1)
        torch.testing.assert_close(probabilities[0], torch.full((VOCABULARY,), 1 / VOCABULARY))
        assert torch.equal(probabilities[1:], torch.softmax(exact[1:] / temperature, -1))


def ended(status: HTTPStatus, finished=None) -> SimpleNamespace:
    """A request after a step in which SGLang ended it with ``status``."""
    request = SimpleNamespace(to_finish=None, finished_reason=finished, output_ids=[1, 2])
    request.finished = lambda: request.finished_reason is not None

    def fail(processor, req, tokens=None):
        req.to_finish = FINISH_ABORT("not accepted", status)
        return []

    assert scheduler_requests.advance_grammar(fail, None, request, 5) == []
    assert scheduler_requests.advance_grammar(fail, None, req=request) == []
    return request


def test_end_of_a_grammar_is_the_clients_error():
    request = ended(HTTPStatus.INTERNAL_SERVER_ERROR)
    assert request.to_finish.status_code == HTTPStatus.BAD_REQUEST and request.finished_reason is None
    assert "number 2 of the answer" in request.to_finish.message
    request = ended(HTTPStatus.INTERNAL_SERVER_ERROR, finished="stop")
    assert request.finished_reason.status_code == HTTPStatus.BAD_REQUEST


def test_other_ends_stay_what_they_are():
    request = ended(HTTPStatus.NOT_FOUND, finished="stop")
    assert request.to_finish.status_code == HTTPStatus.NOT_FOUND and request.finished_reason == "stop"
    request = SimpleNamespace(to_finish=None)
    scheduler_requests.advance_grammar(lambda processor, req: None, None, request)
    assert request.to_finish is None


@pytest.mark.parametrize(
    ("already", "joining"), [([None], {"ids"}), ([[[0.5]]], {"embeddings"}), ([], {"ids", "embeddings"})]
)
def test_a_prefill_is_all_embeddings_or_all_ids(already, joining):
    adder = SimpleNamespace(can_run_list=[SimpleNamespace(input_embeds=embeddings) for embeddings in already])
    for kind, embeddings in (("ids", None), ("embeddings", [[1.0]])):
        request = SimpleNamespace(input_embeds=embeddings)
        answer = scheduler_requests.keep_embeddings_apart(lambda adder, request: "added", adder, request)
        assert answer == ("added" if kind in joining else AddReqResult.OTHER)
