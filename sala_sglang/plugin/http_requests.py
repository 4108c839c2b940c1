"""Requests that cannot be served are refused with a clear error; none of them fails or ends the server.

SGLang reads a request in three places: it parses the body, it normalizes and tokenizes, and the scheduler decodes the
resulting message. What the first two do not foresee is answered as an error of the server, and what only the scheduler
or the model finds ends the server. Here whatever fails in the first two is the client's error, the scheduler's decoding
is tried in front of it, and values that its tensors cannot take are refused (``request_values.py``).

With ``--tokenizer-worker-num`` HTTP is answered by several processes, which SGLang starts without its plugins. They are
told to import ``http_worker.py`` in place of SGLang's application.

What a request leaves to sample from is known only while it runs: ``scheduler_requests.py``.
"""

import copy
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from sala_sglang.plugin import speculation
from sala_sglang.plugin.hooks import apply_hooks, hook_around
from sala_sglang.plugin.request_values import check_message, check_range

logger = logging.getLogger(__name__)

MAX_SAMPLES = 1024  # of one prompt; each takes memory from the moment the request arrives

APPLICATION_VARIABLE, APPLICATION = "SGLANG_HTTP_SERVER_APP_PATH", "sala_sglang.plugin.http_worker:app"

_done: set[str] = set()


def prepare_frontend() -> None:
    """The touches that only the process of the HTTP server needs. Idempotent."""
    if "frontend" in _done:
        return
    from sala_sglang.plugin import tool_calls  # it imports SGLang's parsers

    tool_calls.register_detector()
    hook_around(HOOKS | tool_calls.HOOKS)
    apply_hooks()
    _done.add("frontend")


def prepare_http_workers() -> None:
    """Have the processes that answer HTTP, where there are several, import the application with these checks.

    Raises ValueError where the user has them import another one.
    """
    if os.environ.setdefault(APPLICATION_VARIABLE, APPLICATION) != APPLICATION:
        raise ValueError(
            f"MiniCPM-SALA: {APPLICATION_VARIABLE} = {os.environ[APPLICATION_VARIABLE]!r} is not supported (requests "
            "would reach the scheduler without checks); allowed: unset"
        )


@contextmanager
def clients_error() -> Iterator[None]:
    """Raises ValueError, which SGLang answers with status 400, for whatever a request makes fail."""
    from fastapi import HTTPException

    try:
        yield
    except (ValueError, HTTPException):
        raise
    except Exception as error:
        logger.warning("A request was refused because it cannot be read", exc_info=True)
        raise ValueError(f"The request cannot be read: {type(error).__name__}: {error}") from error


async def parse(original: Callable, **arguments: Any) -> Any:
    """A route's parameters from the HTTP request; validators of SGLang's protocol fail on unexpected shapes."""
    from fastapi import HTTPException
    from fastapi.exceptions import RequestValidationError

    if arguments.get("body") is None:
        return await original(**arguments)  # whatever fails is not what the client has sent
    try:
        _check_names(arguments["body"])
        return await original(**arguments)
    except (HTTPException, RequestValidationError):
        raise
    except Exception as error:
        logger.warning("A request was refused because it cannot be parsed", exc_info=True)
        where = ("body", *await _fields_that_fail(original, arguments))
        raise _refusal(where, f"unexpected shape: {type(error).__name__}: {error}") from error


def _check_names(body: Any) -> None:
    """A busy scheduler drops requests that are named like SGLang's own health checks, and they never end."""
    from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX

    names = body.get("rid") if isinstance(body, dict) else None
    for name in names if isinstance(names, list) else [names]:
        if isinstance(name, str) and name.startswith(HEALTH_CHECK_RID_PREFIX):
            raise _refusal(("body", "rid"), f"{name!r} is not supported; allowed: not {HEALTH_CHECK_RID_PREFIX}...")


def _refusal(where: tuple[str, ...], message: str) -> Exception:
    from fastapi.exceptions import RequestValidationError

    return RequestValidationError([{"type": "value_error", "loc": where, "msg": message}])


async def _fields_that_fail(original: Callable, arguments: dict[str, Any]) -> list[str]:
    """The fields of the body that cannot be parsed on their own either."""
    if not isinstance(arguments["body"], dict):
        return []
    failing = []
    body = json.loads(await arguments["request"].body())  # again, since validators change what they are given
    for name, value in body.items():
        try:
            await original(**arguments | {"body": {name: value}})
        except Exception:
            failing.append(name)
    return failing


def convert(original: Callable, *args: Any, **kwargs: Any) -> Any:
    """SGLang's own form of a request in the OpenAI API."""
    with clients_error():
        return original(*args, **kwargs)


def normalize(original: Callable, request: Any) -> None:
    """Defaults for what the request leaves out, and lists with a value for each prompt."""
    with clients_error():
        for name in ("sampling_params", "input_embeds"):
            if getattr(request, name) in ([], [[]]):
                raise ValueError(f"{name} is empty; allowed: a value for each prompt")
        parameters = request.sampling_params or {}
        for of_prompt in parameters if isinstance(parameters, list) else [parameters]:
            check_range("n", [of_prompt.get("n", 1)], 1, MAX_SAMPLES)
        original(request)
    if request.is_single:
        for name in ("rid", "sampling_params"):
            if isinstance(value := getattr(request, name), list):
                raise ValueError(f"{name} = {value!r} is not supported; allowed for one prompt: one value, not a list")


def register(original: Callable, manager: Any, request: Any, *args: Any, **kwargs: Any) -> None:
    """The request as one for each prompt, waiting for their answers."""
    try:
        original(manager, request, *args, **kwargs)
    except IndexError as error:
        values = {field.name: getattr(request, field.name) for field in fields(request)}
        short = [name for name, value in values.items() if isinstance(value, list) and len(value) < len(request.rid)]
        raise ValueError(
            f"Too few entries in {', '.join(short)}; allowed: one for each of {len(request.rid)} prompts"
        ) from error


def stop_regex_length(original: Callable, pattern: str) -> int:
    """Tokens that a match of a stop_regex takes at most."""
    try:
        return original(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"stop_regex = {pattern!r} is not supported: {error}") from error


def tokenize(
    original: Callable, manager: Any, request: Any, input_text: Any, input_ids: Any, *args: Any, **kwargs: Any
) -> Any:
    """The message for the scheduler."""
    config = manager.model_config
    with clients_error():
        if request.input_ids:
            check_range("input_ids", (min(input_ids), max(input_ids)), 0, config.vocab_size - 1)
        message = original(manager, request, input_text, input_ids, *args, **kwargs)
        _try_decoding(message)
    if manager.enable_metrics:
        _check_labels(request.custom_labels or {}, manager.metrics_collector.labels)
    check_message(message, config.vocab_size, config.hidden_size)
    speculation.check_message(message)
    return message


def _try_decoding(message: Any) -> None:
    """Raises ValueError that names the field whose value is not of the type that SGLang declares for it."""
    from sglang.srt.managers.io_struct import msgpack_encode
    from sglang.srt.managers.utils import msgpack_decode_explained

    trial = copy.copy(message)
    trial.time_stats = None  # not the client's, and pickled only when it is sent
    try:
        msgpack_decode_explained(msgpack_encode(trial))
    except ValueError as error:  # it names the message's own fields, and counts those of the sampling parameters
        names = type(message.sampling_params).__struct_fields__
        explained = re.sub(r"(?<=sampling_params)\[(\d+)\]", lambda at: f".{names[int(at[1])]}", str(error))
        raise ValueError(explained) from error


def _check_labels(labels: dict[str, str], known: dict[str, str]) -> None:
    if unknown := labels.keys() - known.keys():
        raise ValueError(f"custom_labels {sorted(unknown)} are not supported; allowed: {sorted(known)}")


_OPENAI = "sglang.srt.entrypoints.openai"
_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
# SGLang's functions and what runs around them.
HOOKS: dict[str, Callable] = {
    "fastapi.routing.solve_dependencies": parse,
    f"{_OPENAI}.serving_chat.OpenAIServingChat._convert_to_internal_request": convert,
    f"{_OPENAI}.serving_completions.OpenAIServingCompletion._convert_to_internal_request": convert,
    "sglang.srt.managers.io_struct.GenerateReqInput.normalize_batch_and_arguments": normalize,
    "sglang.srt.sampling.sampling_params.get_max_seq_length": stop_regex_length,
    f"{_MANAGER}._init_req_state": register,
    f"{_MANAGER}._create_tokenized_object": tokenize,
}
