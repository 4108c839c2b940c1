"""The state of a training run in a file, by which it goes on, and what was measured as CSV."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

NAME = "training.pt"


def save_run(out: Path, model: torch.nn.Module, optimizers: Iterable[torch.optim.Optimizer], **progress: Any) -> None:
    """Write weights, optimizers and ``progress`` to the directory ``out``; whole, or what was there before stays."""
    states = {"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
    partial = out / f"{NAME}.partial"
    torch.save(states | progress, partial)
    partial.rename(out / NAME)


def load_run(
    out: Path, model: torch.nn.Module, optimizers: Iterable[torch.optim.Optimizer], device: str | torch.device
) -> dict[str, Any]:
    """Bring model and optimizers to what was saved; the rest of it. Nothing where ``out`` has no run."""
    path = out / NAME
    if not path.exists():
        return {}
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state.pop("model"))
    for optimizer, saved in zip(optimizers, state.pop("optimizers"), strict=True):
        optimizer.load_state_dict(saved)
    return state


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a CSV file anew; the first row names the columns."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
