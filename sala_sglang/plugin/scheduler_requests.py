"""Requests that nothing in front refused, that run out of tokens, or must not mix: hooks on the scheduler.

What a request leaves to sample from is known only while it runs: a grammar can come to a point where no token fits.
Nothing of it fails or ends the server; ``http_requests.py`` refuses what can be told from the request alone.
"""

from array import array
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import torch

from sala_sglang.plugin import speculation
from sala_sglang.plugin.request_values import check_message

LOWEST_LOGIT = -1e30  # probability 0 next to any other; finite after the division by a temperature


def refuse_impossible(original: Callable, scheduler: Any, message: Any, **kwargs: Any) -> None:
    """A request as it arrives: where its values would end the scheduler, the client's error."""
    config = scheduler.model_config
    try:
        check_message(message, config.vocab_size, config.hidden_size)
        speculation.check_message(message)
    except Exception as error:  # of a type that no check expects, too
        _refuse(scheduler, message, f"{error}")
    else:
        original(scheduler, message, **kwargs)


def _refuse(scheduler: Any, message: Any, why: str) -> None:
    """Answer with status 400, by way of a request of one token that never runs, as SGLang refuses unknown sessions."""
    from sglang.srt.sampling.sampling_params import SamplingParams

    harmless = SamplingParams(max_new_tokens=1)
    harmless.normalize(None)
    request = scheduler._create_generation_req(
        message,
        message.rid,
        "",
        array("q", [0]),
        harmless,
        vocab_size=scheduler.model_config.vocab_size,
        http_worker_ipc=message.http_worker_ipc,
    )
    request.tokenizer = scheduler.tokenizer
    request.set_finish_with_abort(why)
    scheduler.init_req_max_new_tokens(request)
    scheduler._add_request_to_queue(request)


def keep_embeddings_apart(original: Callable, adder: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Whether a request joins the next prefill, all of which is given as embeddings or all as token ids."""
    from sglang.srt.managers.schedule_policy import AddReqResult

    if adder.can_run_list and (request.input_embeds is None) != (adder.can_run_list[0].input_embeds is None):
        return AddReqResult.OTHER  # it waits for the prefill after that
    return original(adder, request, *args, **kwargs)


def keep_a_choice(original: Callable, sampling_info: Any, logits: torch.Tensor) -> None:
    """Biased and masked logits: where the masks leave no token, any token, so that probabilities are never NaN."""
    original(sampling_info, logits)
    orchestrator = sampling_info.penalizer_orchestrator  # None under overlap scheduling, which adds penalties up before
    penalized = sampling_info.acc_additive_penalties is not None or (orchestrator and orchestrator.is_required)
    if (sampling_info.grammar_mask is not None or penalized) and not sampling_info.is_all_greedy:
        logits.clamp_(min=LOWEST_LOGIT)


def advance_grammar(original: Callable, processor: Any, *args: Any, **kwargs: Any) -> Any:
    """A token that the grammar does not take: nothing fitted any more, which is for the client to change."""
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    accepted = original(processor, *args, **kwargs)
    request = kwargs.get("req") or args[0]
    end = request.to_finish
    if isinstance(end, FINISH_ABORT) and end.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
        message = (
            f"No token can be number {len(request.output_ids)} of the answer: none fits json_schema, regex, ebnf or "
            "structural_tag, or min_new_tokens forbids those that do"
        )
        request.to_finish = FINISH_ABORT(message, HTTPStatus.BAD_REQUEST, "BadRequestError")
        if request.finished():  # with this token, which only looked like an end
            request.finished_reason = request.to_finish
    return accepted


_SAMPLING = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo"
_RESULTS = "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
# SGLang's functions and what runs around them.
HOOKS: dict[str, Callable] = {
    "sglang.srt.managers.scheduler.Scheduler.handle_generate_request": refuse_impossible,
    "sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req": keep_embeddings_apart,
    f"{_SAMPLING}._apply_post_grammar_logits_transforms": keep_a_choice,
    f"{_RESULTS}._apply_prefill_grammar": advance_grammar,
    f"{_RESULTS}._accept_grammar_tokens": advance_grammar,
}
