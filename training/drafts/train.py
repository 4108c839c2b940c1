"""Train a draft model: ``python -m training.drafts.train --model DIR --answers FILE --out DIR``.

The default is an EAGLE3 head, trained as in its paper: every draft step is unrolled on the head's own outputs.
``--dense LAYERS`` makes a small Llama instead. The target's states are computed for each update and not stored. An
interrupted run goes on where it was saved.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from training.drafts.conversations import Conversation, batch_numbers, read_conversations
from training.drafts.dense import DenseDraft
from training.drafts.eagle3 import Eagle3Head
from training.drafts.target import Target
from training.saved_runs import load_run, save_run, write_rows

STEP_WEIGHT = 0.8  # of the loss of each draft step, compared with the one before
WARM_UP_SHARE = 0.05  # of all updates
MUON_SHARE = 2.0  # of AdamW's learning rate
SAVE_STEPS, LOG_STEPS = 100, 20

Draft = Eagle3Head | DenseDraft


@dataclass(frozen=True)
class Drafted:
    """Of one conversation. losses: [K] sums over bases, with gradients. tried: [K, N] where step k has a token to
    predict; right: [K, N] where its likeliest token is that one."""

    losses: torch.Tensor
    tried: torch.Tensor
    right: torch.Tensor

    def counts(self) -> torch.Tensor:
        """[K, 3] of each step: bases with a token to predict, those whose earlier steps were right, right ones.

        The last two are what a greedy server would see: a draft counts after accepted ones alone.
        """
        chain = self.right.cumprod(0)
        reached = self.tried & torch.cat((torch.ones_like(chain[:1]), chain[:-1])).bool()
        return torch.stack([x.sum(1) for x in (self.tried, reached, chain)], dim=1)


def draft(model: Draft, target: Target, conversation: Conversation, steps: int) -> Drafted:
    """Draft from every base of the answers, given the tokens of the text, and compare with the target's distributions.

    The loss is the cross entropy to the target's distribution over the draft vocabulary; where its likeliest token is
    not in there, nothing could be accepted and nothing is taught.
    """
    ids = conversation.ids.to(target.model.device, torch.int64)
    bases, left = (x.to(ids.device) for x in conversation.bases())
    states, last = target.states(ids)
    logits = target.logits(last[bases + 1])
    reachable = torch.isin(logits.argmax(-1), model.token_ids)
    wanted = logits[:, model.token_ids].softmax(-1)
    embeds = target.embed(ids)
    losses, tried, right = [], [], []
    for step, found in enumerate(model.unroll(ids, states, embeds, bases, steps)):
        has_next = left > step
        rows = (has_next & reachable.roll(-step)).nonzero()[:, 0]  # a base's answer goes on in the next rows
        losses.append(-(wanted[rows + step] * found[rows].float().log_softmax(-1)).sum())
        expected = ids[(bases + 2 + step).clamp(max=len(ids) - 1)]
        tried.append(has_next)
        right.append(has_next & (model.token_ids[found.argmax(-1)] == expected))
    return Drafted(torch.stack(losses), torch.stack(tried), torch.stack(right))


class Trainer:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        torch.manual_seed(options.seed)
        self.conversations = read_conversations(options.answers, options.max_tokens)
        self.target = Target(options.model, self.device, self.dtype)
        self.model = self.begin().to(self.device)
        self.optimizers = make_optimizers(self.model, options.learning_rate)
        self.updates = options.epochs * -(-len(self.conversations) // options.batch)
        self.weights = STEP_WEIGHT ** torch.arange(options.draft_steps, device=self.device)
        self.step = 0
        self.rows: list[dict[str, float]] = []

    def begin(self) -> Draft:
        longest = max(len(conversation.ids) for conversation in self.conversations)
        if self.options.dense:
            return DenseDraft.begin(self.target, self.options.dense, longest)
        vocabulary = self.target.config.vocab_size
        token_ids = frequent_tokens(self.conversations, vocabulary, self.options.draft_vocabulary)
        return Eagle3Head.begin(self.target, token_ids, longest)

    def run(self) -> None:
        self.resume()
        begin, since = time.time(), self.step
        sums = torch.zeros(self.options.draft_steps, 4)
        while self.step < self.updates:
            sums += self.update()
            if self.step % LOG_STEPS == 0 or self.step == self.updates:
                self.rows.append(self.row(sums))
                seconds = (time.time() - begin) / (self.step - since)
                print(json.dumps(self.rows[-1] | {"seconds_per_update": round(seconds, 2)}), flush=True)
                sums.zero_()
            if self.step % SAVE_STEPS == 0:
                self.save()
        self.save()
        self.publish()

    def update(self) -> torch.Tensor:
        """One update; returns its loss sums and counts [K, 4]."""
        numbers = batch_numbers(len(self.conversations), self.options.batch, self.options.seed, self.step)
        batch = [self.conversations[number] for number in numbers]
        total = sum(len(conversation.bases()[0]) for conversation in batch)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = group["initial_lr"] * rate(self.step, self.updates)
        sums = torch.zeros(self.options.draft_steps, 4)
        for conversation in batch:
            with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                drafted = draft(self.model, self.target, conversation, self.options.draft_steps)
            ((self.weights * drafted.losses).sum() / total).backward()
            sums += torch.cat((drafted.losses.detach()[:, None], drafted.counts()), dim=1).cpu()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return sums

    def row(self, sums: torch.Tensor) -> dict[str, float]:
        """Of the updates since the last row: loss per predicted token and accept rate of each draft step."""
        loss, tried, reached, right = sums.T
        losses, rates = (loss / tried.clamp(min=1)).tolist(), (right / reached.clamp(min=1)).tolist()
        row: dict[str, float] = {"step": self.step, "conversations": self.step * self.options.batch}
        row |= {f"loss_{k + 1}": round(x, 4) for k, x in enumerate(losses)}
        return row | {f"accept_{k + 1}": round(x, 4) for k, x in enumerate(rates)}

    def save(self) -> None:
        save_run(self.options.out, self.model, self.optimizers, step=self.step, rows=self.rows)

    def resume(self) -> None:
        """Go on where a run was saved. The order of the conversations follows from seed and step alone."""
        found = load_run(self.options.out, self.model, self.optimizers, self.device)
        self.step, self.rows = found.get("step", self.step), found.get("rows", self.rows)

    def publish(self) -> None:
        """Write the draft as SGLang loads it, and the loss curve."""
        self.model.save(self.options.out)
        write_rows(self.options.out / "loss.csv", self.rows)


def frequent_tokens(conversations: list[Conversation], vocabulary: int, count: int | None) -> torch.Tensor:
    """The ``count`` tokens that answers have most often, ascending; all where there is no count."""
    if count is None or count >= vocabulary:
        return torch.arange(vocabulary)
    counted: Counter[int] = Counter()
    for conversation in conversations:
        for begin, end in conversation.answers:
            counted.update(conversation.ids[begin:end].tolist())
    ranked = sorted(range(vocabulary), key=lambda token: (-counted[token], token))
    return torch.tensor(sorted(ranked[:count]))


def make_optimizers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for norms and tables of the vocabulary, as sala-tiny itself was trained."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_table = "lm_head" in name or "embed_tokens" in name
        (others if is_table or parameter.ndim < 2 else matrices).append(parameter)
    muon = {"params": matrices, "initial_lr": MUON_SHARE * learning_rate}
    adamw = {"params": others, "initial_lr": learning_rate}
    return [
        torch.optim.Muon([muon], momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([adamw], betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: a warm-up, then linear to nothing."""
    return min((step + 1) / (WARM_UP_SHARE * steps), (steps - step) / steps, 1.0)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of MiniCPM-SALA")
    parser.add_argument("--answers", type=Path, required=True, help="file of training.drafts.answers")
    parser.add_argument("--out", type=Path, required=True, help="directory of the draft, and of the saved run")
    parser.add_argument("--draft-vocabulary", type=int, help="tokens that a head can draft; all where not given")
    parser.add_argument("--dense", type=int, metavar="LAYERS", help="a dense model of its own instead of a head")
    parser.add_argument("--draft-steps", type=int, default=5, help="unrolled steps")
    parser.add_argument("--max-tokens", type=int, default=8192, help="longer conversations are left out")
    parser.add_argument("--batch", type=int, default=16, help="conversations per update")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    chosen = parse()
    chosen.out.mkdir(parents=True, exist_ok=True)
    Trainer(chosen).run()
