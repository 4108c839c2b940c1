"""The evaluation: every task, length and depth, several samples of each, and the files that say how it went."""

import json
import queue
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from tqdm import tqdm

from sala_sglang import __version__
from sala_sglang.evaluation.answers import DATE, Answers, Job
from sala_sglang.evaluation.client import ANSWER_TOKENS, Client, Outcome
from sala_sglang.evaluation.samples import SampleMaker

MAX_ERRORS_SHOWN = 3
# SGLang takes prompts that fill its context with max_tokens, and then answers with up to two tokens fewer.
RESERVED_TOKENS = 2


@dataclass(frozen=True)
class Plan:
    """What to measure. lengths: tokens of prompt and answer together. depths: 0 to 1."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    samples: int
    seed: int
    concurrency: int

    def places(self) -> list[tuple[str, int, float]]:
        return [(task, length, depth) for task in self.tasks for length in self.lengths for depth in self.depths]

    def jobs(self) -> list[Job]:
        """Everything to ask, in order."""
        return [(*place, number) for place in self.places() for number in range(self.samples)]


@dataclass(frozen=True)
class Cell:
    """Samples of one task, length and depth. score: mean over those that were served, None if none was."""

    task: str
    length: int
    depth: float
    score: float | None
    served: int
    refused: int
    errors: tuple[str, ...]


def about(client: Client, tokenizer_path: str, plan: Plan) -> dict:
    """What the parts of an evaluation that is resumed must have in common, and when it begins."""
    what = {"sala_sglang": __version__, "model": client.model, "tokenizer": tokenizer_path} | asdict(plan)
    del what["concurrency"]
    return {DATE: datetime.now(UTC).isoformat(timespec="seconds")} | what


def evaluate(client: Client, maker: SampleMaker, plan: Plan, answers: Answers) -> list[Cell]:
    """Ask what ``answers`` lack, and return a cell per task, length and depth, in this order.

    Shows progress on stderr. Raises Unreachable when the server goes away; answers until then are kept.
    """

    def ask(job: Job) -> Outcome:
        task, length, depth, number = job
        if client.context_tokens and length > client.context_tokens:
            allowed = f"up to {client.context_tokens}, which the server names as its max_model_len"
            return Outcome(None, "", f"{length} tokens are not possible; allowed: {allowed}")
        rng = Random(f"{plan.seed} {task} {length} {depth} {number}")
        return client.ask(maker.sample(rng, task, length - ANSWER_TOKENS - RESERVED_TOKENS, depth))

    jobs = plan.jobs()
    missing = [job for job in jobs if job not in answers.kept]
    tokens, known = (sum(length for _, length, _, _ in some) for some in (jobs, answers.kept))
    with tqdm(total=tokens, initial=known, unit=" tokens", unit_scale=True, desc=client.model) as bar:

        def show() -> None:
            refused = sum(outcome.score is None for outcome in answers.kept.values())
            bar.set_postfix_str(f"{len(answers.kept)} of {len(jobs)} requests, {refused} refused")

        show()
        for job, outcome in _as_they_come(ask, missing, plan.concurrency):
            answers.add(job, outcome)
            bar.update(job[1])
            show()
    places, samples = plan.places(), range(plan.samples)
    return [cell(place, [answers.kept[*place, number] for number in samples]) for place in places]


def _as_they_come(ask: Callable[[Job], Outcome], jobs: list[Job], threads: int) -> Iterator[tuple[Job, Outcome]]:
    """Jobs with their outcomes. When one fails no more are begun, and its error is raised behind the last outcome.

    The threads are daemons: a program that is interrupted ends without waiting for answers that may take hours.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    ready: queue.SimpleQueue[tuple[Job, Outcome] | None] = queue.SimpleQueue()
    failures: list[Exception] = []
    for job in jobs:
        waiting.put(job)

    def work() -> None:
        with suppress(queue.Empty):
            while not failures:
                job = waiting.get_nowait()
                try:
                    ready.put((job, ask(job)))
                except Exception as error:
                    failures.append(error)
        ready.put(None)

    running = min(threads, len(jobs))
    for _ in range(running):
        threading.Thread(target=work, daemon=True).start()
    while running:
        if (found := ready.get()) is None:
            running -= 1
        else:
            yield found
    if failures:
        raise failures[0]


def cell(place: tuple[str, int, float], outcomes: list[Outcome]) -> Cell:
    """The summary of the outcomes at one place."""
    scores = [outcome.score for outcome in outcomes if outcome.score is not None]
    errors = tuple(sorted({outcome.error for outcome in outcomes if outcome.error}))[:MAX_ERRORS_SHOWN]
    mean = sum(scores) / len(scores) if scores else None
    return Cell(*place, mean, len(scores), len(outcomes) - len(scores), errors)


def write_result(path: Path, client: Client, plan: Plan, answers: Answers, cells: list[Cell]) -> None:
    """Write everything that was asked and found as JSON."""
    common = {name: answers.about[name] for name in (DATE, "sala_sglang", "model", "tokenizer")}
    result = common | {"server": client.root, "plan": asdict(plan), "cells": [asdict(one) for one in cells]}
    path.write_text(json.dumps(result, indent=1) + "\n")


def table(cells: list[Cell]) -> Iterator[str]:
    """Lines with the mean score of every task and length; - where nothing was served."""
    lengths = sorted({one.length for one in cells})
    names = [short(length) for length in lengths]
    width = max(6, *map(len, names))
    yield " ".join([f"{'task':<12}", *(f"{name:>{width}}" for name in names)])
    for task in dict.fromkeys(one.task for one in cells):
        means = []
        for length in lengths:
            scores = [c.score for c in cells if (c.task, c.length) == (task, length) and c.score is not None]
            means.append(f"{100 * sum(scores) / len(scores):.0f}%" if scores else "-")
        yield " ".join([f"{task:<12}", *(f"{mean:>{width}}" for mean in means)])


def refusals(outcomes: dict[Job, Outcome]) -> Iterator[str]:
    """Lines with every reason for which requests of a length were refused, and how often.

    Reasons that differ by numbers alone, such as the tokens of a prompt, count as one; the first is shown.
    """
    reasons: dict[tuple[int, str], str] = {}
    counts: Counter[tuple[int, str]] = Counter()
    for (_, length, _, _), outcome in sorted(outcomes.items()):
        if outcome.error is not None:
            kind = length, re.sub(r"\d+", "0", outcome.error)
            reasons.setdefault(kind, outcome.error)
            counts[kind] += 1
    if counts:
        yield f"Refused: {counts.total()} of {len(outcomes)} requests"
    for kind, count in counts.items():
        yield f"  --lengths {short(kind[0])}, {count} of them: {reasons[kind]}"


def miscounts(outcomes: dict[Job, Outcome], tokenizer_path: str) -> Iterator[str]:
    """A line if the server counts other numbers of tokens than the tokenizer here."""
    found = [outcome.miscounted for outcome in outcomes.values() if outcome.miscounted]
    if found:
        difference = f"{min(found):+} to {max(found):+} tokens at the server"
        yield f"{len(found)} prompts have {difference} of what --tokenizer {tokenizer_path} counts: is it the server's?"


def short(tokens: int) -> str:
    """1024 -> 1K, 1048576 -> 1M; other numbers as they are."""
    for size, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if tokens % size == 0:
            return f"{tokens // size}{letter}"
    return str(tokens)
