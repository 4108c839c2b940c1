"""The part of the RULER benchmark that imports lm-eval."""

import argparse
import contextlib
import io
import logging
import random
import sys
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import datasets
import lm_eval
import numpy
import requests
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.tasks import TaskManager
from lm_eval.tasks.ruler import cwe_utils, vt_utils
from lm_eval.tasks.ruler.common_utils import process_results
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.evaluation.ruler_settings import OWN, Found, Settings
from sala_sglang.evaluation.client import ANSWER_TOKENS, Client
from sala_sglang.evaluation.run import RESERVED_TOKENS
from sala_sglang.evaluation.samples import SampleMaker

Unanswered = (aiohttp.ClientError, requests.RequestException, TimeoutError)
ANSWER_SECONDS = 24 * 3600  # of a prompt of a million tokens on a slow server; lm-eval's own limit is 300
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SEED = 0
# Of ruler_vt as lm-eval makes it: its worked example has at most so many tokens, it and prompts at least so many lines.
EXAMPLE_TOKENS, EXAMPLE_LINES, PROMPT_LINES, TRACKING_NEW_TOKENS = 500, 5, 10, 30
SPREAD_TOKENS = 32  # of names and numbers that are drawn

logging.getLogger("lm_eval").setLevel(logging.WARNING)


class Impossible(ValueError):
    """lm-eval has no prompts of this task and length with this tokenizer."""


class Usage:
    """A model of lm-eval that keeps the server's token counts, which lm-eval throws away."""

    def parse_generations(self, outputs: Any, **options: Any) -> list[str]:
        self.answers = [*getattr(self, "answers", []), *(outputs if isinstance(outputs, list) else [outputs])]
        return super().parse_generations(outputs, **options)  # type: ignore[misc]

    def found(self, scores: list[float]) -> Found:
        prompts = [answer["usage"]["prompt_tokens"] for answer in self.answers]
        cut = sum(answer["choices"][0]["finish_reason"] == "length" for answer in self.answers)
        return Found(round(sum(scores) / len(scores), 4), len(scores), min(prompts), max(prompts), cut)


class Completions(Usage, LocalCompletionsAPI):
    """Whole prompts, as token ids or as text."""


class Chat(Usage, LocalChatCompletion):
    """Messages; with ``template`` their text is first put into that tokenizer's chat template."""

    template: PreTrainedTokenizerBase | None = None

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> Any:
        if self.template:
            *asked, begun = chat_history
            text = self.template.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            chat_history = [{"role": "user", "content": text}, begun]
        return super().apply_chat_template(chat_history, add_generation_prompt)


def ask(
    client: Client, tokenizer: str, settings: Settings, task: str, length: int, options: argparse.Namespace
) -> Found:
    """Ask ``options.samples`` prompts of one task and length, and score the answers as lm-eval does.

    Raises Impossible before anything is asked, and one of Unanswered when the server refuses a prompt or goes away.
    """
    # It prints every length that ruler_vt tries.
    with contextlib.redirect_stdout(io.StringIO()):
        manager, made = make_task(task, length, tokenizer, options.samples)
    model = make_model(client, tokenizer, settings, options.concurrency)
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=[made],
        task_manager=manager,
        apply_chat_template=settings.template,
        gen_kwargs=dict(settings.request),
        limit=options.samples,
        bootstrap_iters=0,
    )
    # Its own means are of 4,096 tokens and their doublings only, and −1 for all that a run does not have.
    return model.found([sample[str(length)] for sample in results["samples"][task]])


def make_task(task: str, length: int, tokenizer: str, samples: int) -> tuple[TaskManager, Any]:
    """lm-eval's task with its prompts, which depend on nothing but the arguments."""
    if task == "ruler_vt":
        check_tracking(AutoTokenizer.from_pretrained(tokenizer), length)
    random.seed(SEED)
    numpy.random.seed(SEED)
    sys.modules.pop(cwe_utils.__name__, None)  # it draws from its own generator, which begins when it is loaded
    # Of all its tasks, which are thousands of files, RULER's alone.
    manager = TaskManager(
        include_path=str(Path(cwe_utils.__file__).parent),
        include_defaults=False,
        metadata={"tokenizer": tokenizer, "max_seq_lengths": [length]},
    )
    wanted = own_task(task, length, tokenizer, samples) if task in OWN else task
    try:
        made = manager.load([wanted])["tasks"][task]
    except ValueError as error:
        raise Impossible(str(error)) from error
    if not all(doc["outputs"] for doc in made.dataset["test"]):
        raise Impossible("the shortest prompt of lm-eval with something to find is longer")
    return manager, made


def check_tracking(tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    """Raises Impossible where not even the smallest prompt of ruler_vt fits: lm-eval would try it for ever."""

    def tokens(lines: int, example: bool) -> int:
        text, _ = vt_utils.generate_input_output(lines, num_chains=1, num_hops=4, is_icl=example)
        return len(tokenizer(text)["input_ids"]) + TRACKING_NEW_TOKENS + SPREAD_TOKENS

    example = tokens(EXAMPLE_LINES, example=True)
    if example > EXAMPLE_TOKENS:
        raise Impossible(
            f"its worked example has {example} tokens with this tokenizer, and lm-eval allows {EXAMPLE_TOKENS}"
        )
    if (smallest := example + tokens(PROMPT_LINES, example=False)) > length:
        raise Impossible(f"its smallest prompt has {smallest} tokens with this tokenizer")


def make_model(client: Client, tokenizer: str, settings: Settings, concurrency: int) -> Any:
    arguments = {
        "base_url": f"{client.root}/v1/{'chat/' * settings.chat}completions",
        "model": client.model,
        "num_concurrent": concurrency,
        "timeout": ANSWER_SECONDS,
        "max_retries": 1,
    }
    if not settings.chat:
        backend = "none" if settings.as_text else "huggingface"
        arguments |= {"tokenizer": tokenizer, "tokenizer_backend": backend} | settings.arguments
        if "max_length" in settings.arguments:
            arguments["max_length"] = client.context_tokens
        return Completions(**arguments)
    model = Chat(**arguments)
    if settings.twice:
        model.template = AutoTokenizer.from_pretrained(tokenizer)
    return model


def own_task(task: str, length: int, tokenizer: str, samples: int) -> dict[str, Any]:
    """A task of ``sala-sglang eval`` in the form of RULER: the same prompts as there, and the begin of the answer."""
    name = task.removeprefix("sala_")
    maker = SampleMaker(AutoTokenizer.from_pretrained(tokenizer))
    docs = []
    for number in range(samples):
        depth = DEPTHS[number % len(DEPTHS)]
        rng = Random(f"0 {name} {length} {depth} {number // len(DEPTHS)}")
        sample = maker.sample(rng, name, length - ANSWER_TOKENS - RESERVED_TOKENS, depth)
        asked = sample.message.rsplit("What is ", 1)[1].removesuffix("?")
        begun = f"{asked.capitalize()} is"
        docs.append({"input": sample.message, "outputs": sample.values, "max_length": length, "gen_prefix": begun})
    return {
        "task": task,
        "dataset_path": "",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(docs)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{input}}",
        "doc_to_target": "{{outputs}}",
        "gen_prefix": "{{gen_prefix}}",
        "process_results": process_results,
        "metric_list": [{"metric": str(length), "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"do_sample": False, "temperature": 0.0, "max_gen_toks": ANSWER_TOKENS, "until": []},
    }
