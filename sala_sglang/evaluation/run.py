"""The evaluation: every task, length and depth, several samples of each, and the files that say how it went."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from tqdm import tqdm
from transformers import AutoTokenizer

from sala_sglang import __version__
from sala_sglang.evaluation.client import Client, Outcome
from sala_sglang.evaluation.samples import SampleMaker

MAX_ERRORS_SHOWN = 3


@dataclass(frozen=True)
class Plan:
    """What to measure. lengths: tokens of the whole prompt. depths: 0 to 1."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    samples: int
    seed: int
    concurrency: int


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


def evaluate(client: Client, tokenizer_path: str, plan: Plan) -> list[Cell]:
    """Ask everything and return a cell per task, length and depth, in this order. Shows progress on stderr."""
    maker = SampleMaker(AutoTokenizer.from_pretrained(tokenizer_path))
    places = [(task, length, depth) for task in plan.tasks for length in plan.lengths for depth in plan.depths]
    jobs = [(place, number) for place in places for number in range(plan.samples)]

    def ask(job: tuple[tuple[str, int, float], int]) -> Outcome:
        (task, length, depth), number = job
        rng = Random(f"{plan.seed} {task} {length} {depth} {number}")
        return client.ask(maker.sample(rng, task, length, depth))

    with ThreadPoolExecutor(plan.concurrency) as pool:
        outcomes = list(tqdm(pool.map(ask, jobs), total=len(jobs), unit="request", desc=client.model))
    parts = [outcomes[i : i + plan.samples] for i in range(0, len(jobs), plan.samples)]
    return [cell(place, part) for place, part in zip(places, parts, strict=True)]


def cell(place: tuple[str, int, float], outcomes: list[Outcome]) -> Cell:
    """The summary of the outcomes at one place."""
    scores = [outcome.score for outcome in outcomes if outcome.score is not None]
    errors = tuple(sorted({outcome.error for outcome in outcomes if outcome.error}))[:MAX_ERRORS_SHOWN]
    mean = sum(scores) / len(scores) if scores else None
    return Cell(*place, mean, len(scores), len(outcomes) - len(scores), errors)


def write_result(path: Path, client: Client, tokenizer_path: str, plan: Plan, cells: list[Cell]) -> None:
    """Write everything that was asked and found as JSON."""
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sala_sglang": __version__,
        "server": client.root,
        "model": client.model,
        "tokenizer": tokenizer_path,
        "plan": asdict(plan),
        "cells": [asdict(one) for one in cells],
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


def table(cells: list[Cell]) -> Iterator[str]:
    """Lines with the mean score of every task and length."""
    lengths = sorted({one.length for one in cells})
    yield " ".join([f"{'task':<12}", *(f"{short(length):>6}" for length in lengths)])
    for task in dict.fromkeys(one.task for one in cells):
        means = []
        for length in lengths:
            scores = [c.score for c in cells if (c.task, c.length) == (task, length) and c.score is not None]
            means.append(f"{100 * sum(scores) / len(scores):>5.0f}%" if scores else f"{'-':>6}")
        yield " ".join([f"{task:<12}", *means])


def short(tokens: int) -> str:
    """1024 -> 1K, 1048576 -> 1M; other numbers as they are."""
    for size, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if tokens % size == 0:
            return f"{tokens // size}{letter}"
    return str(tokens)
