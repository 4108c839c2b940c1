"""Train sala-tiny: ``python -m training.train --out DIR``. An interrupted run goes on where it was saved.

With ``--start CHECKPOINT`` a trained one is only finished: in minutes on a GPU, or with fewer tokens on two cores.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch._functorch.config
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from sala_sglang.hf import MiniCPMSALAForCausalLM
from training.architecture import make_config
from training.conversations import ANSWER_WEIGHT
from training.data import Batches, Step
from training.initial import initialise
from training.saved_runs import load_run, save_run, write_rows
from training.selection_loss import Captured, selection_loss
from training.tokenizer import load_or_make_tokenizer

MUON_PEAK, ADAMW_PEAK = 8e-3, 4e-3  # learning rates
SELECTION_SHARE = 0.3  # of the gradient's size that each layer's selection loss may add
SELECTION_POSITIONS = 256  # per conversation, the first ones of its answers
NEVER_SPARSE = 1 << 30
SAVE_STEPS, LOG_STEPS = 250, 25


@dataclass(frozen=True)
class Stage:
    """steps of ``tokens`` tokens with conversations of up to ``length``; ``mixed``: every second selects blocks."""

    steps: int
    length: int
    tokens: int
    mixed: bool = False


@dataclass(frozen=True)
class Recipe:
    """rate: (step, steps) -> share of the peak learning rates. muon: for the matrices of the layers, else AdamW."""

    stages: tuple[Stage, ...]
    rate: Callable[[int, int], float]
    muon: bool


def plan_steps(stages: tuple[Stage, ...]) -> list[Step]:
    """Every step: mostly a stage's length, two of eight half of it."""
    plan = []
    for stage in stages:
        for number in range(stage.steps):
            halved = number % 8 in (3, 6) and stage.length > 256
            length = stage.length // 2 if halved else stage.length
            plan.append(Step(length, stage.tokens // length, stage.mixed and number % 2 == 0))
    return plan


def whole_rate(step: int, steps: int) -> float:
    """Warm-up over 50 steps; after 40 % of the steps, linear from the half to almost nothing."""
    if step < 0.4 * steps:
        return min(1.0, (step + 1) / 50)
    return 0.5 * (0.02 + 0.98 * (steps - step) / (0.6 * steps))


def finishing_rate(step: int, steps: int) -> float:
    """Low from the start: warm-up over 20 steps, linear to nothing."""
    return 0.2 * min(1.0, (step + 1) / 20) * (steps - step) / steps


WHOLE = Recipe(
    (
        Stage(300, 256, 1 << 16),
        Stage(80, 512, 1 << 16),
        Stage(80, 1024, 1 << 15, mixed=True),
        Stage(120, 2048, 1 << 15, mixed=True),
        Stage(200, 4096, 1 << 15, mixed=True),
        Stage(100, 8192, 1 << 15, mixed=True),
    ),
    whole_rate,
    muon=True,
)
FINISH = Recipe(
    (
        Stage(300, 1024, 1 << 16),
        Stage(60, 2048, 1 << 15, mixed=True),
        Stage(60, 4096, 1 << 15, mixed=True),
        Stage(40, 8192, 1 << 15, mixed=True),
    ),
    finishing_rate,
    muon=True,
)
# On a CPU, where Muon takes longer than all else of a step.
FINISH_ON_CPU = Recipe((Stage(220, 1024, 1 << 12), Stage(40, 2048, 1 << 12, mixed=True)), finishing_rate, muon=False)


class Trainer:
    def __init__(self, options: argparse.Namespace, recipe: Recipe):
        self.options, self.rate = options, recipe.rate
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.plan = plan_steps(recipe.stages)
        torch.manual_seed(options.seed)
        if options.start:
            AutoTokenizer.from_pretrained(options.start).save_pretrained(options.out)
        load_or_make_tokenizer(options.out)
        self.config = make_config()
        self.dense_len = self.config.sparse_geometry.dense_len
        self.model = MiniCPMSALAForCausalLM(self.config).to(self.device)
        initialise(self.model)
        if options.start:
            self.model.load_state_dict(load_file(options.start / "model.safetensors"))
        self.captured = Captured(self.model)
        self.parameters = list(self.model.parameters())
        self.optimizers = make_optimizers(self.model, recipe.muon)
        self.step = 0
        self.rows: list[dict] = []

    def run(self) -> None:
        self.resume()
        begin = time.time()
        loader = DataLoader(
            Batches(self.options.out, self.plan, self.options.seed, self.step),
            batch_size=None,
            num_workers=self.options.workers,
            prefetch_factor=8 if self.options.workers else None,
            pin_memory=self.device == "cuda",
        )
        for batch in loader:
            measured = self.train_step(*(x.to(self.device, non_blocking=True) for x in batch))
            if self.step % LOG_STEPS == 0 or self.step == len(self.plan):
                row = {name: round(float(value), 4) for name, value in measured.items()}
                selects = self.plan[self.step - 1].selects_blocks
                self.rows.append({"step": self.step, "tokens": batch[0].shape[1], "selects_blocks": selects, **row})
                print(json.dumps(self.rows[-1] | {"seconds": round(time.time() - begin)}), flush=True)
            if self.step % SAVE_STEPS == 0:
                self.save()
        self.save()
        self.publish()

    def train_step(self, ids: torch.Tensor, weights: torch.Tensor, asked: torch.Tensor) -> dict[str, torch.Tensor]:
        """One update. ids, weights: [B, T]; asked: [B, N] positions whose next token is a digit to be found, or −1."""
        selects = self.plan[self.step].selects_blocks
        self.attend_densely_below(self.dense_len if selects else NEVER_SPARSE)
        rate = self.rate(self.step, len(self.plan))
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak"] * rate
        self.captured.batch = len(ids)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            hidden = self.model.model(ids, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden[:, :-1] / self.config.logit_divisor)
        losses = nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        wanted = weights[:, 1:].flatten()
        loss = (losses * wanted).sum() / wanted.sum()
        selection = self.selection_losses(weights) if ids.shape[1] >= self.dense_len else []
        pulls = [torch.autograd.grad(part, self.parameters, retain_graph=True, allow_unused=True) for part in selection]
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters])
        for gradients in pulls:
            add_at_most(self.parameters, gradients, SELECTION_SHARE * norm)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        with torch.no_grad():
            found = digits_found(logits, ids, asked)
        chosen = torch.stack(selection).mean().detach() if selection else loss.new_zeros(())
        return {"loss": loss.detach(), "selection": chosen, "digits": found, "norm": norm}

    def attend_densely_below(self, tokens: int) -> None:
        self.config.sparse_config = (self.config.sparse_config or {}) | {"dense_len": tokens}

    def selection_losses(self, weights: torch.Tensor) -> list[torch.Tensor]:
        """One loss per sparse layer but the first, whose keys know nothing but their own token."""
        answer = weights[:, 1:] == ANSWER_WEIGHT
        positions = answer.int().argsort(dim=1, descending=True, stable=True)[:, :SELECTION_POSITIONS]
        positions = positions.masked_fill(~answer.gather(1, positions), -1)
        layers = self.captured.layers[1:]
        return [selection_loss(x["queries"], x["keys"], positions, self.config.sparse_geometry) for x in layers]

    def save(self) -> None:
        save_run(self.options.out, self.model, self.optimizers, step=self.step, rows=self.rows)

    def resume(self) -> None:
        found = load_run(self.options.out, self.model, self.optimizers, self.device)
        self.step, self.rows = found.get("step", self.step), found.get("rows", self.rows)

    def publish(self) -> None:
        """Write the model in bfloat16 and the loss curve."""
        self.attend_densely_below(self.dense_len)
        self.model.bfloat16().save_pretrained(self.options.out)
        write_rows(self.options.out / "loss.csv", self.rows)


def digits_found(logits: torch.Tensor, ids: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Share of asked digits that are the likeliest next token."""
    real = asked >= 0
    at = asked.clamp(min=0)
    guess = logits.argmax(-1).gather(1, at)
    right = guess == ids[:, 1:].gather(1, at)
    return (right & real).sum() / real.sum().clamp(min=1)


def make_optimizers(model: nn.Module, muon: bool) -> list[torch.optim.Optimizer]:
    """AdamW, with weight decay for the matrices of the layers alone, or Muon for these."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
    matrices = {"params": inner, "peak": MUON_PEAK if muon else ADAMW_PEAK, "weight_decay": 0.1}
    rest = {"params": others, "peak": ADAMW_PEAK, "weight_decay": 0.0}
    if not muon:
        return [torch.optim.AdamW([matrices, rest], betas=(0.9, 0.98), fused=True)]
    return [
        torch.optim.Muon([matrices], momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([rest], betas=(0.9, 0.98), fused=True),
    ]


def add_at_most(parameters: list[nn.Parameter], gradients: tuple[torch.Tensor | None, ...], norm: torch.Tensor) -> None:
    """Add ``gradients``, scaled down to ``norm`` if they are larger, to those of ``parameters``."""
    pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    total = nn.utils.get_total_norm([g for _, g in pairs])
    scale = (norm / total.clamp(min=1e-12)).clamp(max=1.0)
    for parameter, gradient in pairs:
        assert parameter.grad is not None  # what decides about a selection takes part in the loss too
        parameter.grad += scale * gradient


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint, and of the saved run")
    parser.add_argument("--start", type=Path, help="checkpoint to finish, instead of training from the beginning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=6)
    return parser.parse_args()


if __name__ == "__main__":
    chosen = parse()
    chosen.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    torch._functorch.config.donated_buffer = False  # selection losses go back through the graph first
    finishing = FINISH if torch.cuda.is_available() else FINISH_ON_CPU
    Trainer(chosen, finishing if chosen.start else WHOLE).run()
