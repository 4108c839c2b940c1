"""Requests to a server, through the official OpenAI client and SGLang's own API."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import torch
from transformers import AutoTokenizer

from testing.server import Server
from tests.serving.oracle import Answer


def random_prompt(length: int, vocabulary: int, seed: int) -> list[int]:
    """Token ids without the special ones."""
    generator = torch.Generator().manual_seed(seed * 100_003 + length)
    return torch.randint(10, vocabulary, (length,), generator=generator).tolist()


def chat_prompt(checkpoint: Path, message: str) -> list[int]:
    """Token ids of a chat of one message that waits for its answer.

    What sala-tiny was taught to answer it says with logits that no rounding decides; how it goes on with a mere text is
    a draw between digits.
    """
    messages = [{"role": "user", "content": message}]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def complete(client: openai.OpenAI, prompt: list[int], tokens: int) -> Answer:
    """Greedy completion of a prompt of token ids, in one piece."""
    (choice,) = client.completions.create(**_arguments(prompt, tokens)).choices
    return Answer(choice.token_ids, choice.logprobs.token_logprobs)


def stream(client: openai.OpenAI, prompt: list[int], tokens: int) -> Answer:
    """Greedy completion, streamed."""
    ids: list[int] = []
    logprobs: list[float] = []
    for event in client.completions.create(**_arguments(prompt, tokens), stream=True):
        for choice in event.choices:
            ids += getattr(choice, "token_ids", None) or []
            logprobs += choice.logprobs.token_logprobs if choice.logprobs else []
    return Answer(ids, logprobs)


def generate(server: Server, prompt: list, tokens: int, replica: int | None = None, **sampling) -> tuple[Answer, dict]:
    """Greedy answer from SGLang's own API with what it tells about the request, such as ``cached_tokens``.

    prompt: token ids, or rows of embeddings. replica: the one that answers, of several; None leaves it to SGLang.
    """
    field = "input_embeds" if isinstance(prompt[0], list) else "input_ids"
    parameters = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True} | sampling
    body = {field: prompt, "sampling_params": parameters, "return_logprob": True, "routed_dp_rank": replica}
    answer = server.post("/generate", body)
    logprobs = [logprob for logprob, *_ in answer["meta_info"]["output_token_logprobs"]]
    return Answer(answer["output_ids"], logprobs), answer["meta_info"]


def all_at_once(ask, of, prompts: list[list[int]], tokens: int) -> list:
    """``ask(of, prompt, tokens)`` for every prompt at the same time, each on a connection of its own."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: ask(of, prompt, tokens), prompts))


def requests_inside(server: Server) -> int:
    """Requests that wait or run, of all replicas."""
    loads = json.loads(server.get("/v1/loads?include=core"))["loads"]
    return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads)


def _arguments(prompt: list[int], tokens: int) -> dict:
    return {
        "model": "default",
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "logprobs": 1,
        "extra_body": {"return_token_ids": True, "ignore_eos": True},
    }
