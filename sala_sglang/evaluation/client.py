"""Questions to the server that is evaluated."""

import json
import re
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass

import httpx
import openai

from sala_sglang.evaluation.samples import Sample

ANSWER_TOKENS = 64
CONNECT_SECONDS = 30
# A prompt of a million tokens may take a slow server hours, so an answer has no time limit. That the server's machine
# is gone shows after three minutes, when its system no longer acknowledges.
KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 8),
)
NOT_NOW = {408, 429, 502, 503, 504}  # status codes that say nothing about the prompt
NUMBER = re.compile(r"(?<!\d)\d{4}(?!\d)")


class Unreachable(RuntimeError):
    """The server does not answer, or does not say what has to be known."""


@dataclass(frozen=True)
class Outcome:
    """score: share of the asked numbers that the reply names, None if the prompt was refused; error: why.

    miscounted: by how many tokens the server's count of the prompt is above ours.
    """

    score: float | None
    reply: str
    error: str | None = None
    miscounted: int = 0


class Client:
    """A server with the OpenAI API at ``base_url``, which may end in ``/v1`` or not.

    context_tokens: of prompt and answer together, None where the server does not say it.
    """

    def __init__(self, base_url: str, model: str | None):
        self.root = base_url.rstrip("/").removesuffix("/v1")
        transport = httpx.HTTPTransport(socket_options=KEEP_ALIVE, limits=httpx.Limits(max_connections=None))
        http = openai.DefaultHttpxClient(mounts={"all://": transport})  # as transport= it would replace proxies
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        self.api = openai.OpenAI(
            base_url=f"{self.root}/v1", api_key="none", timeout=timeout, max_retries=0, http_client=http
        )
        try:
            models = self.api.models.list(timeout=CONNECT_SECONDS).data
            self.model = model or models[0].id
        except (openai.OpenAIError, IndexError) as error:
            if model is None:
                raise Unreachable(f"--base-url: {base_url!r} lists no models: {error}") from error
            self.model, models = model, []
        contexts = {one.id: getattr(one, "max_model_len", None) for one in models}
        self.context_tokens = contexts.get(self.model)

    def tokenizer_path(self) -> str:
        """Where the server's tokenizer is, as an SGLang server says."""
        try:
            with urllib.request.urlopen(f"{self.root}/model_info", timeout=CONNECT_SECONDS) as response:
                return json.load(response)["tokenizer_path"]
        except (urllib.error.URLError, ValueError, KeyError) as error:
            raise Unreachable(f"{self.root} does not name its tokenizer ({error}); give --tokenizer") from error

    def ask(self, sample: Sample) -> Outcome:
        """The greedy answer to a sample. Raises Unreachable if the server neither answers nor refuses."""
        try:
            response = self.api.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": sample.message}],
                max_tokens=ANSWER_TOKENS,
                temperature=0,
            )
        except openai.APIStatusError as error:
            if error.status_code in NOT_NOW:
                raise Unreachable(f"{self.root} does not answer: {_reason(error)}") from error
            return Outcome(None, "", _reason(error))
        except openai.APIConnectionError as error:
            raise Unreachable(f"{self.root} does not answer: {error.__cause__ or error}") from error
        return _outcome(response, sample)


def _outcome(response: openai.types.chat.ChatCompletion, sample: Sample) -> Outcome:
    (choice,) = response.choices
    reply, usage = choice.message.content or "", response.usage
    if usage is None:
        return Outcome(score(reply, sample.values), reply)
    miscounted = usage.prompt_tokens - sample.tokens
    if choice.finish_reason == "length" and usage.completion_tokens < ANSWER_TOKENS:
        # SGLang shortens answers without a word where its memory for keys and values ends.
        error = f"the server ended the answer after {usage.completion_tokens} of {ANSWER_TOKENS} tokens"
        return Outcome(None, reply, error, miscounted)
    return Outcome(score(reply, sample.values), reply, None, miscounted)


def _reason(error: openai.APIStatusError) -> str:
    """What the server says, without the JSON around it."""
    body = error.body if isinstance(error.body, dict) else {}
    field = f"{body['param']}: " if body.get("param") else ""
    return f"{error.status_code}: {field}{body.get('message') or error.message}"


def score(reply: str, values: tuple[str, ...]) -> float:
    """Share of ``values`` among the numbers of ``reply``: of as many of its first ones as there are values."""
    named = NUMBER.findall(reply)[: len(values)]
    return len({*values} & {*named}) / len({*values})
