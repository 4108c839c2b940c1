"""Requests that run out of tokens, and batches that do not mix, in front of SGLang's own functions."""

from array import array
from http import HTTPStatus
from types import SimpleNamespace

import pytest
import torch
from sglang.srt import runtime_context
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.managers.schedule_policy import AddReqResult
from sglang.srt.sampling.sampling_params import SamplingParams

from sala_sglang.plugin import scheduler_requests

VOCABULARY = 100
LOWEST_TEMPERATURE = 1e-6  # SGLang takes lower ones for greedy


@pytest.fixture(autouse=True)
def without_speculation(monkeypatch):
    monkeypatch.setattr(runtime_context, "get_spec", lambda: SimpleNamespace(speculative_algorithm=None))


class Scheduler:
    """The part of SGLang's that a refusal goes through."""

    model_config = SimpleNamespace(vocab_size=VOCABULARY, hidden_size=8)
    tokenizer = None

    def __init__(self):
        self.served, self.refused = [], []

    def _create_generation_req(self, message, rid, text, ids, sampling, **kwargs):
        request = SimpleNamespace(rid=rid, ids=list(ids), sampling=sampling, **kwargs)
        request.set_finish_with_abort = lambda why: setattr(request, "why", why)
        return request

    def init_req_max_new_tokens(self, request):
        pass

    def _add_request_to_queue(self, request):
        self.refused.append(request)


def message(ids=(5, 6), **sampling) -> SimpleNamespace:
    nothing = ("input_embeds", "session_params", "positional_embed_overrides", "token_indices_to_pool")
    given = dict.fromkeys((*nothing, "multi_item_delimiter_indices"))
    parameters = SamplingParams(max_new_tokens=2)
    parameters.normalize(None)
    for name, value in sampling.items():
        setattr(parameters, name, value)
    rest = {"logprob_start_len": -1, "top_logprobs_num": 0, "http_worker_ipc": "ipc", "rid": "x"}
    return SimpleNamespace(input_ids=array("q", ids), sampling_params=parameters, **given | rest)


def arrive(scheduler: Scheduler, arrived) -> None:
    scheduler_requests.refuse_impossible(
        lambda scheduler, message: scheduler.served.append(message), scheduler, arrived
    )


@pytest.mark.parametrize(
    ("arrived", "words"),
    [
        (message([5, VOCABULARY]), f"input_ids = {VOCABULARY}"),
        (message(top_k=1 << 40), "top_k"),
        (message(temperature=float("nan")), "temperature"),
        (message(logit_bias={"5": "much"}), "logit_bias"),
        (message([]), "The prompt is empty"),
        (SimpleNamespace(rid="x", http_worker_ipc="ipc"), "input_ids"),  # nothing of what a request has
    ],
)
def test_what_nothing_in_front_has_refused(arrived, words):
    scheduler = Scheduler()
    arrive(scheduler, arrived)
    (request,) = scheduler.refused
    assert words in request.why and not scheduler.served
    assert (request.rid, request.ids, request.http_worker_ipc) == ("x", [0], "ipc")
    assert request.sampling.max_new_tokens == 1


def test_what_can_be_served_is_served():
    scheduler, arrived = Scheduler(), message(temperature=0.5)
    arrive(scheduler, arrived)
    assert scheduler.served == [arrived] and not scheduler.refused


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
