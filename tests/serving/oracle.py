"""The Hugging Face model as the oracle of served answers."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sala_sglang.hf import MiniCPMSALAForCausalLM
from testing.rounded_cache import Scales, round_keys_and_values


@dataclass(frozen=True)
class Answer:
    """What a server said to a prompt: generated token ids and the log-probability of each."""

    tokens: list[int]
    logprobs: list[float]


class Oracle:
    """Judges greedy answers. ``dense_len`` replaces the checkpoint's, as --dense-as-sparse does with 0."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype = torch.float32, dense_len: int | None = None):
        self.model = MiniCPMSALAForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
        if dense_len is not None:
            self.model.config.sparse_config["dense_len"] = dense_len

    @torch.no_grad()
    def logprobs(self, prompt: list[int], tokens: list[int]) -> torch.Tensor:
        """Log-probabilities [len(tokens), vocabulary] before each token: one pass over the prompt, then steps."""
        outputs = self.model(torch.tensor([prompt]), use_cache=True)
        rows = [outputs.logits[0, -1]]
        for token in tokens[:-1]:
            outputs = self.model(torch.tensor([[token]]), past_key_values=outputs.past_key_values, use_cache=True)
            rows.append(outputs.logits[0, -1])
        return torch.stack(rows).double().log_softmax(-1)

    def errors(self, prompt: list[int], answer: Answer) -> tuple[float, float]:
        """How far ``answer`` is from greedy and from the right log-probabilities, both the largest over its steps.

        The first is the distance of a served token's log-probability from the best one: 0 unless the oracle
        would have chosen another token.
        """
        expected = self.logprobs(prompt, answer.tokens)
        chosen = expected.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        served = torch.tensor(answer.logprobs, dtype=torch.float64)
        return float((expected.amax(1) - chosen).max()), float((chosen - served).abs().max())

    def check(self, prompt: list[int], answer: Answer, tolerance: float) -> None:
        """Assert that ``answer`` is greedy and its log-probabilities are right, both within ``tolerance``.

        A served token that is not the oracle's first choice thus passes only as a near-tie.
        """
        choice_error, logprob_error = self.errors(prompt, answer)
        where = f"prompt of {len(prompt)} tokens, answer {answer.tokens}"
        assert choice_error <= tolerance, f"{where}: a token {choice_error} below the best"
        assert logprob_error <= tolerance, f"{where}: log-probabilities off by {logprob_error}"


class FP8Oracle(Oracle):
    """The plain model with the keys and values of its sparse layers rounded to e4m3; ``scales`` by layer, else 1."""

    def __init__(
        self, checkpoint: Path, dtype: torch.dtype = torch.float32, scales: dict[int, Scales] | None = None
    ) -> None:
        super().__init__(checkpoint, dtype)
        round_keys_and_values(self.model, scales or {})


class RoundedOracle:
    """Judges greedy answers in bfloat16 by the errors of the plain model in bfloat16, both against float32."""

    def __init__(self, checkpoint: Path):
        self.exact, self.rounded = Oracle(checkpoint), Oracle(checkpoint, torch.bfloat16)

    def check(self, prompts: list[list[int]], answers: list[Answer]) -> None:
        """Assert that log-probabilities are together at most twice as far off, and that what was chosen is a near-tie.

        Two tokens change places where the errors of both bring them together: twice an error of twice the plain
        model's largest one.
        """
        pairs = list(zip(prompts, answers, strict=True))
        gaps, served = zip(*(self.exact.errors(*pair) for pair in pairs), strict=True)
        plain = [self.exact.errors(prompt, self._rounded(prompt, answer))[1] for prompt, answer in pairs]
        assert sum(served) <= 2 * sum(plain), (served, plain)
        assert max(gaps) <= 4 * max(plain), (gaps, plain)

    def _rounded(self, prompt: list[int], answer: Answer) -> Answer:
        """The same tokens with what the rounded model says of them."""
        logprobs = self.rounded.logprobs(prompt, answer.tokens)
        chosen = logprobs.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        return Answer(answer.tokens, chosen.tolist())
