"""Train sala-tiny on one GPU: ``python -m training.train --out DIR``. An interrupted run goes on where it was saved."""

import argparse
import csv
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from sala_sglang.hf import MiniCPMSALAForCausalLM
from training.architecture import make_config
from training.data import Batches
from training.initial import initialise
from training.selection_loss import Captured, selection_loss
from training.tokenizer import load_or_make_tokenizer

TOKENS_PER_STEP = 1 << 15
NEVER_SPARSE = 1 << 30
SAVE_STEPS = 250


@dataclass(frozen=True)
class Stage:
    """steps with conversations of up to ``length`` tokens; ``mixed``: every second step selects blocks."""

    steps: int
    length: int
    mixed: bool = False


STAGES = (
    Stage(450, 256),
    Stage(150, 512),
    Stage(200, 1024, mixed=True),
    Stage(250, 2048, mixed=True),
    Stage(350, 4096, mixed=True),
    Stage(100, 8192, mixed=True),
)


def lengths_by_step(stages: tuple[Stage, ...]) -> list[tuple[int, bool]]:
    """(tokens per conversation, sparse) of every step: mostly a stage's length, two steps of eight half of it."""
    plan = []
    for stage in stages:
        for step in range(stage.steps):
            halved = step % 8 in (3, 6) and stage.length > 256
            plan.append((stage.length // 2 if halved else stage.length, stage.mixed and step % 2 == 0))
    return plan


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 100 steps; after a third of the steps, linear from half the peak to almost nothing."""
    if step < steps // 3:
        return peak * min(1.0, (step + 1) / 100)
    return peak * 0.5 * (0.03 + 0.97 * 1.5 * (steps - step) / steps)


class Trainer:
    def __init__(self, options: argparse.Namespace, stages: tuple[Stage, ...] = STAGES, tokens: int = TOKENS_PER_STEP):
        self.options, self.tokens = options, tokens
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.plan = lengths_by_step(stages)
        torch.manual_seed(options.seed)
        self.tokenizer = load_or_make_tokenizer(options.out)
        self.config = make_config()
        self.dense_len = self.config.sparse_config["dense_len"]
        self.model = MiniCPMSALAForCausalLM(self.config).to(self.device)
        initialise(self.model)
        self.captured = Captured(self.model)
        self.optimizer = torch.optim.AdamW(groups(self.model), lr=options.lr, betas=(0.9, 0.98), fused=True)
        self.step = 0
        self.rows: list[dict] = []

    def run(self) -> None:
        self.resume()
        begin = time.time()
        loader = DataLoader(
            Batches(self.options.out, self.plan, self.tokens, self.options.seed, self.step),
            batch_size=None,
            num_workers=self.options.workers,
            prefetch_factor=8 if self.options.workers else None,
            pin_memory=self.device == "cuda",
        )
        for batch in loader:
            row = self.train_step(*(x.to(self.device, non_blocking=True) for x in batch))
            if self.step % 50 == 0 or self.step == len(self.plan):
                row = {name: round(float(value), 4) for name, value in row.items()}
                self.rows.append({"step": self.step, "tokens": batch[0].shape[1], **row})
                print(json.dumps(self.rows[-1] | {"seconds": round(time.time() - begin)}), flush=True)
            if self.step % SAVE_STEPS == 0:
                self.save()
        self.save()
        self.publish()

    def train_step(self, ids: torch.Tensor, weights: torch.Tensor, asked: torch.Tensor) -> dict[str, torch.Tensor]:
        """One update. ids, weights: [B, T]; asked: [B, N] positions whose next token is a digit to be found, or −1."""
        sparse = self.plan[self.step][1]
        self.config.sparse_config["dense_len"] = self.dense_len if sparse else NEVER_SPARSE
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * learning_rate(self.step, len(self.plan), self.options.lr)
        self.captured.batch = len(ids)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            hidden = self.model.model(ids, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden[:, :-1] / self.config.logit_divisor)
        losses = nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        wanted = weights[:, 1:].flatten()
        loss = (losses * wanted).sum() / wanted.sum()
        selection = loss.new_zeros(())
        if ids.shape[1] >= self.dense_len:
            geometry = self.config.sparse_geometry
            # Not of the first layer, whose keys know nothing but their own token.
            layers = self.captured.layers[1:]
            parts = [selection_loss(x["queries"], x["keys"], asked, geometry) for x in layers]
            selection = torch.stack(parts).mean()
        (loss + self.options.selection_weight * selection).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        with torch.no_grad():
            found = digits_found(logits, ids, asked)
        return {"loss": loss.detach(), "selection": selection.detach(), "digits": found, "norm": norm}

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "rows": self.rows,
        }
        partial = self.options.out / "training.pt.partial"
        torch.save(state, partial)
        partial.rename(self.options.out / "training.pt")

    def resume(self) -> None:
        path = self.options.out / "training.pt"
        if path.exists():
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.rows = state["step"], state["rows"]

    def publish(self) -> None:
        """Write the model in bfloat16 and the loss curve."""
        self.config.sparse_config["dense_len"] = self.dense_len
        self.model.bfloat16().save_pretrained(self.options.out)
        with (self.options.out / "loss.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, self.rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def digits_found(logits: torch.Tensor, ids: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Share of asked digits that are the likeliest next token."""
    real = asked >= 0
    at = asked.clamp(min=0)
    guess = logits.argmax(-1).gather(1, at)
    right = guess == ids[:, 1:].gather(1, at)
    return (right & real).sum() / real.sum().clamp(min=1)


def groups(model: nn.Module) -> list[dict]:
    """Matrices with weight decay; the vocabulary's two and the norms without it."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
    return [
        {"params": inner, "weight_decay": 0.1, "factor": 1.0},
        {"params": others, "weight_decay": 0.0, "factor": 1.0},
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint, and of the saved run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--selection-weight", type=float, default=0.3)
    parser.add_argument("--workers", type=int, default=6)
    return parser.parse_args()


if __name__ == "__main__":
    chosen = parse()
    chosen.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    Trainer(chosen).run()
