"""What two models say of the tokens of a text, by SGLang servers or by the plain model."""

import json
import math
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from sala_sglang.evaluation.client import Unreachable
from sala_sglang.quantization.divergence import Divergence
from sala_sglang.quantization.layerwise import LayerwiseModel
from sala_sglang.quantization.texts import Text

TOP = 20  # likeliest tokens of every position that a server is asked for
# Probability of the rest below which float32 leaves nothing of it to compare.
LEAST_REST = 1e-6


@dataclass(frozen=True)
class Said:
    """Of every token of a text but the first: its log-probability, and those of the TOP likeliest, likeliest first."""

    own: list[float]
    likeliest: list[dict[int, float]]


@dataclass(frozen=True)
class Compared:
    """A text by two servers. found: [items, 2] bool, whether every token of an item is a server's first choice."""

    divergence: Divergence
    found: torch.Tensor


def ask_both(first_root: str, second_root: str, text: Text) -> Compared:
    """Ask the SGLang servers at both addresses. Raises Unreachable where one does not say what is asked."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda root: ask(root, text.tokens), (first_root, second_root))
    return compare(first, second, text)


def compare(first: Said, second: Said, text: Text) -> Compared:
    """What two models say of a text."""
    tokens = text.tokens[1:]
    answers = list(zip(first.likeliest, second.likeliest, tokens, first.own, second.own, strict=True))
    choices = torch.tensor([[next(iter(one)) for one in said.likeliest] for said in (first, second)])
    right = choices == torch.tensor(tokens)
    return Compared(
        Divergence(
            positions=torch.arange(1, len(text.tokens)),
            kl=torch.tensor([least_kl(*answer) for answer in answers], dtype=torch.float64),
            same_choice=choices[0] == choices[1],
            losses=-torch.tensor([first.own, second.own], dtype=torch.float64).T,
        ),
        torch.tensor([[right[side, item.start - 1 : item.stop - 1].all() for side in (0, 1)] for item in text.items])
        .bool()
        .reshape(-1, 2),
    )


def ask(root: str, tokens: list[int]) -> Said:
    """Prefill ``tokens`` and read what the server says of each. The prefix cache takes no part in such requests."""
    body = {
        "input_ids": tokens,
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": TOP,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
    }
    found = _post(f"{root}/generate", body).get("meta_info", {})
    own, likeliest = found.get("input_token_logprobs"), found.get("input_top_logprobs")
    # SGLang gives the last token of a vocabulary, where sala-tiny has the begin of a turn, another id here.
    if not own or not likeliest or len(own) != len(tokens):
        raise Unreachable(f"{root} gives no log-probabilities of a prompt's tokens; allowed: SGLang servers")
    return Said([one[0] for one in own[1:]], [{one[1]: one[0] for one in place} for place in likeliest[1:]])


def say(model: LayerwiseModel, text: Text, hidden: torch.Tensor) -> Said:
    """What the plain model says, as a server would. hidden: of the text behind the last layer."""
    own: list[float] = []
    likeliest: list[dict[int, float]] = []
    for (rows,) in model.log_probabilities(hidden[:-1]):
        next_tokens = torch.tensor(text.tokens[len(own) + 1 :][: len(rows)])
        own += rows.gather(1, next_tokens[:, None])[:, 0].tolist()
        values, tokens = (part.tolist() for part in rows.topk(TOP))
        likeliest += [dict(zip(*pair, strict=True)) for pair in zip(tokens, values, strict=True)]
    return Said(own, likeliest)


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise Unreachable(f"{url} answers {error.code}: {error.read().decode(errors='replace')[:300]}") from error
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise Unreachable(f"{url} does not answer: {error}") from error


def least_kl(
    first: dict[int, float], second: dict[int, float], token: int, first_own: float, second_own: float
) -> float:
    """The least KL divergence that is possible by what is known of two distributions, in nats.

    Known are the log-probabilities of tokens that both servers name, and of the text's own; all other tokens count as
    one, with the probability that is left. Merging tokens never makes the divergence larger.
    """
    pairs = [(first[one], second[one]) for one in first.keys() & second.keys() - {token}]
    pairs.append((first_own, second_own))
    shares = [(math.exp(one), math.exp(other)) for one, other in pairs]
    kl = sum(p * (one - other) for (p, _), (one, other) in zip(shares, pairs, strict=True))
    rest, other_rest = (max(1 - sum(share[side] for share in shares), 0.0) for side in (0, 1))
    if rest > LEAST_REST:
        kl += rest * math.log(rest / max(other_rest, LEAST_REST))
    return max(kl, 0.0)
