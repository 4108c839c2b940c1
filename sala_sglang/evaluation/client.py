"""Questions to the server that is evaluated."""

import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass

import openai

from sala_sglang.evaluation.samples import Sample

ANSWER_TOKENS = 64
TIMEOUT_SECONDS = 3600  # a prompt of a million tokens takes minutes
NUMBER = re.compile(r"(?<!\d)\d{4}(?!\d)")


class Unreachable(RuntimeError):
    """The server does not answer, or does not say what has to be known."""


@dataclass(frozen=True)
class Outcome:
    """score: share of the asked numbers that the reply names, None if there is no reply; error: why."""

    score: float | None
    reply: str
    error: str | None = None


class Client:
    """A server with the OpenAI API at ``base_url``, which may end in ``/v1`` or not."""

    def __init__(self, base_url: str, model: str | None):
        self.root = base_url.rstrip("/").removesuffix("/v1")
        self.api = openai.OpenAI(base_url=f"{self.root}/v1", api_key="none", timeout=TIMEOUT_SECONDS, max_retries=0)
        try:
            self.model = model or self.api.models.list().data[0].id
        except (openai.OpenAIError, IndexError) as error:
            raise Unreachable(f"--base-url: {base_url!r} lists no models: {error}") from error

    def tokenizer_path(self) -> str:
        """Where the server's tokenizer is, as an SGLang server says."""
        try:
            with urllib.request.urlopen(f"{self.root}/model_info", timeout=30) as response:
                return json.load(response)["tokenizer_path"]
        except (urllib.error.URLError, ValueError, KeyError) as error:
            raise Unreachable(f"{self.root} does not name its tokenizer ({error}); give --tokenizer") from error

    def ask(self, sample: Sample) -> Outcome:
        """The greedy answer to a sample."""
        try:
            response = self.api.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": sample.message}],
                max_tokens=ANSWER_TOKENS,
                temperature=0,
            )
        except openai.OpenAIError as error:
            return Outcome(None, "", str(error))
        reply = response.choices[0].message.content or ""
        return Outcome(score(reply, sample.values), reply)


def score(reply: str, values: tuple[str, ...]) -> float:
    """Share of ``values`` among the numbers of ``reply``: of as many of its first ones as there are values."""
    named = NUMBER.findall(reply)[: len(values)]
    return len({*values} & {*named}) / len({*values})
