"""Training with Trainer: the loss of accumulated samples, gradient checkpointing, and the LoRA example."""

import math
import runpy
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from sala_sglang.hf import SALACache

EXAMPLE = Path(__file__).parents[2] / "examples" / "lora_finetune.py"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_gate", "z_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def sample(tokens: int, labelled: int, seed: int) -> dict[str, list[int]]:
    ids = torch.randint(5, 1300, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    return {"input_ids": ids, "labels": [-100] * (tokens - labelled) + ids[-labelled:]}


class KeepsGradients(Trainer):
    def training_step(self, model, *args, **kwargs):
        loss = super().training_step(model, *args, **kwargs)
        self.gradients = [parameter.grad.clone() for parameter in model.parameters()]
        return loss


def train(path, out, samples, **options):
    arguments = TrainingArguments(
        str(out),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=len(samples),
        max_steps=1,
        max_grad_norm=0,
        learning_rate=0.0,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    trainer = KeepsGradients(load(path).train(), arguments, train_dataset=samples, eval_dataset=samples)
    trainer.train()
    return trainer


def distance(gradients, expected) -> float:
    differences = [a - b for a, b in zip(gradients, expected, strict=True)]
    return float(torch.nn.utils.get_total_norm(differences) / torch.nn.utils.get_total_norm(expected))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ],
)
def test_accumulated_samples_count_by_their_labels(trained_checkpoint, tmp_path, options):
    samples = [sample(60, 4, 0), sample(60, 47, 1)]
    model, total = load(trained_checkpoint), 0
    for one in samples:
        logits = model(torch.tensor([one["input_ids"]])).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(one["labels"][1:]), reduction="sum")
    (total / 51).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    trainer = train(trained_checkpoint, tmp_path, samples, **options)
    assert distance(trainer.gradients, expected) < 1e-6
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total.item() / 51, rel=1e-5)


def test_gradient_checkpointing_of_sparse_layers(trained_checkpoint):
    """Layers run twice over a selecting, padded batch; no cache, and nothing is left over for the second run."""
    ids = torch.randint(5, 1300, (2, 1100), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(1100) >= torch.tensor([[0], [50]])).long()
    gradients = []
    for checkpointed in (False, True):
        model = load(trained_checkpoint).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        output = model(ids, attention_mask=mask, labels=ids)
        assert output.past_key_values is None
        output.loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert distance(*gradients) < 1e-6


def test_gradient_checkpointing_and_caches(trained_checkpoint):
    model = load(trained_checkpoint).train()
    ids = torch.arange(5, 35)[None]
    expected = model.generate(ids, max_new_tokens=4, do_sample=False).tolist()
    model.gradient_checkpointing_enable()
    for cached in ({"use_cache": True}, {"past_key_values": SALACache()}):
        with pytest.raises(ValueError, match=r"use_cache: got True; allowed: None or False.*gradient checkpointing"):
            model(ids, **cached)
    assert model.generate(ids, max_new_tokens=4, do_sample=False).tolist() == expected


def test_gradients_through_a_cache(trained_checkpoint):
    """Without checkpointing a cache keeps the graph: two calls train as one does."""
    ids, gradients = torch.arange(5, 105)[None], []
    for parts in ((100,), (60, 40)):
        model, cache = load(trained_checkpoint).train(), SALACache()
        logits = torch.cat([model(part, past_key_values=cache).logits for part in ids.split(parts, 1)], 1)
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert distance(*gradients) < 1e-5


def test_lora_example(trained_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(trained_checkpoint), str(tmp_path), "12"])
    trainer = runpy.run_path(str(EXAMPLE), run_name="__main__")["trainer"]
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert all(map(math.isfinite, losses)) and losses[-1] < 0.7 * losses[0]
    assert (tmp_path / "adapter_model.safetensors").exists()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        plain = load(trained_checkpoint)(ids).logits
        adapted = PeftModel.from_pretrained(load(trained_checkpoint), tmp_path).eval()
        logits = adapted(ids).logits
        merged = adapted.merge_and_unload()(ids).logits
    assert (logits - plain).abs().max() > 0.1
    torch.testing.assert_close(merged, logits, rtol=1e-4, atol=1e-3)


def test_prompt_tuning_generates_with_its_prompt(trained_checkpoint):
    """PEFT puts the prompt before the first call with an empty cache, if it knows the cache for one."""
    ids = torch.arange(5, 35)[None]
    for seed in range(3):
        torch.manual_seed(seed)
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        tuned = get_peft_model(load(trained_checkpoint), config).eval()
        greedy = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
        expected = tuned.generate(input_ids=ids, **greedy, use_cache=False).tolist()
        assert tuned.generate(input_ids=ids, **greedy).tolist() == expected


def test_prefix_tuning_is_refused(trained_checkpoint):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ValueError, match="past_key_values: got a DynamicCache; allowed: a SALACache"):
        get_peft_model(load(trained_checkpoint), config)(input_ids=torch.arange(5, 35)[None])


def test_lora_reaches_every_linear_by_its_released_name(trained_checkpoint):
    adapted = get_peft_model(load(trained_checkpoint), LoraConfig(task_type="CAUSAL_LM", target_modules=LINEARS, r=2))
    reached = {name.split(".lora_A")[0].split(".", 2)[2] for name in adapted.state_dict() if "lora_A" in name}
    linears = {name for name, m in load(trained_checkpoint).named_modules() if isinstance(m, torch.nn.Linear)}
    assert reached == linears - {"lm_head"}
