"""Accept lengths: ``python -m training.drafts.evaluate --model DIR --draft DIR --answers FILE --output CSV``.

Counts what a server would accept of a greedy chain of drafts, in answers that the model itself has given. The server's
steps are followed token by token, in float32 and without the server.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch

from training.drafts.conversations import Conversation, read_conversations
from training.drafts.dense import DenseDraft
from training.drafts.eagle3 import Eagle3Head
from training.drafts.target import Target
from training.drafts.train import Draft, Drafted, draft
from training.saved_runs import write_rows

SHORTEST = 256  # tokens of the first range of contexts; each further one is twice as long


@dataclass
class Accepted:
    """Sums over answers. tokens: those that verify steps yielded. reached, right: [K] drafts behind accepted ones."""

    steps_unrolled: int
    answers: int = 0
    tokens: int = 0
    steps: int = 0
    reached: torch.Tensor = field(init=False)
    right: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.reached = torch.zeros(self.steps_unrolled)
        self.right = torch.zeros(self.steps_unrolled)

    @property
    def length(self) -> float:
        """Tokens per verify step: 1 without any accepted draft."""
        return self.tokens / max(1, self.steps)


def walk(drafted: Drafted, begin: int, tokens: int) -> int:
    """Verify steps for the ``tokens`` tokens after the first of an answer, whose bases begin in column ``begin``."""
    runs = drafted.right[:, begin : begin + tokens].cumprod(0).sum(0).tolist()
    steps = at = 0
    while at < tokens:
        at += runs[at] + 1  # the accepted drafts, and the model's own token behind them
        steps += 1
    return steps


@torch.no_grad()
def add(accepted: dict[int, Accepted], model: Draft, target: Target, conversation: Conversation, drafts: int) -> None:
    """Count the answers of a conversation under the lengths of their contexts."""
    drafted = draft(model, target, conversation, drafts)
    begin = 0
    for answer_begin, answer_end in conversation.answers:
        tokens = answer_end - answer_begin - 1
        columns = Drafted(drafted.losses, *(x[:, begin : begin + tokens] for x in (drafted.tried, drafted.right)))
        entry = accepted[context_range(answer_begin)]
        entry.answers += 1
        entry.tokens += tokens
        entry.steps += walk(drafted, begin, tokens)
        _, reached, right = columns.counts().T
        entry.reached += reached.cpu()
        entry.right += right.cpu()
        begin += tokens


def context_range(tokens: int) -> int:
    """Upper end of the range of contexts that ``tokens`` lie in."""
    end = SHORTEST
    while end < tokens:
        end *= 2
    return end


def measure(model: Draft, target: Target, conversations: list[Conversation], drafts: int) -> dict[int, Accepted]:
    """Accepted drafts by context: up to SHORTEST tokens before the answer, up to twice as many, and so on."""
    accepted: dict[int, Accepted] = defaultdict(lambda: Accepted(drafts))
    for conversation in conversations:
        add(accepted, model, target, conversation, drafts)
    return dict(sorted(accepted.items()))


def load_draft(path: Path) -> Draft:
    architecture = json.loads((path / "config.json").read_text())["architectures"][0]
    return Eagle3Head.load(path) if "Eagle3" in architecture else DenseDraft.load(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of MiniCPM-SALA")
    parser.add_argument("--draft", type=Path, required=True, help="what training.drafts.train has written")
    parser.add_argument("--answers", type=Path, required=True, help="file of training.drafts.answers, not trained on")
    parser.add_argument("--drafts", type=int, default=3, help="per verify step")
    parser.add_argument("--max-tokens", type=int, default=32768, help="longer conversations are left out")
    parser.add_argument("--output", type=Path, required=True, help="CSV file")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    target = Target(options.model, device, torch.float32)
    model = load_draft(options.draft).to(device).eval()
    conversations = read_conversations(options.answers, options.max_tokens)
    rows = []
    for end, entry in measure(model, target, conversations, options.drafts).items():
        rates = (entry.right / entry.reached.clamp(min=1)).tolist()
        row = {"draft": options.draft.name, "context_tokens": end, "answers": entry.answers, "tokens": entry.tokens}
        row |= {"verify_steps": entry.steps, "accept_length": round(entry.length, 3)}
        rows.append(row | {f"accept_{k + 1}": round(rate, 3) for k, rate in enumerate(rates)})
        print(rows[-1], flush=True)
    write_rows(options.output, rows)


if __name__ == "__main__":
    main()
