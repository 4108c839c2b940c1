"""Rounding changes the plain model's probabilities a little, more with fewer bits, and is undone afterwards."""

import torch
from transformers import AutoTokenizer

from benchmarks.evaluation import fp8_kv
from sala_sglang.evaluation.samples import TASKS, SampleMaker
from sala_sglang.hf import MiniCPMSALAForCausalLM


def test_formats_and_scales(trained_checkpoint, monkeypatch):
    monkeypatch.setattr(fp8_kv, "CALIBRATION_TOKENS", 400)
    monkeypatch.setattr(fp8_kv, "TASKS", dict(list(TASKS.items())[:1]))
    model = MiniCPMSALAForCausalLM.from_pretrained(trained_checkpoint, dtype=torch.float32).eval()
    rows = list(fp8_kv.measure(model, SampleMaker(AutoTokenizer.from_pretrained(trained_checkpoint)), 600))
    found = {(row["format"], row["scales"]): float(row["kl_mean"]) for row in rows}
    assert list(found) == [("e4m3", "1"), ("e4m3", "by head"), ("e5m2", "1"), ("e5m2", "by head")]
    assert 0 < found["e4m3", "1"] < found["e5m2", "1"] < 0.1
    assert not any(module._forward_hooks for module in model.modules())
