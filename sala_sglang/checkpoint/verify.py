"""Does a checkpoint continue three prompts as the released one was recorded to?"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import sala_sglang.hf  # noqa: F401  registers the model with the Auto classes

BEGIN_ID = 1
# Greedy continuations of the released weights in bfloat16, published with them; a prompt follows BEGIN_ID.
RECORDED = {
    "Hello, my name is": (
        *(1709, 20079, 10888, 59400, 72, 1417, 1891, 1348),
        *(1709, 20079, 31045, 59400, 1510, 1709, 20079, 8465),
    ),
    "The capital of France is": (
        *(11225, 72, 5, 5, 101, 59320, 5, 4221),
        *(1502, 3041, 1348, 4065, 6822, 59358, 1496, 2219),
    ),
    "Briefly explain gravity:": (
        *(5, 5, 59345, 72, 1345, 1588, 18098, 19499),
        *(3509, 11876, 1410, 1348, 11868, 6187, 1379, 6950),
    ),
}


def run(model_dir: Path) -> int:
    """Print one line per recorded prompt; returns the exit code, 0 if every continuation is the recorded one."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto").to(device).eval()
    differing = 0
    for prompt, expected in RECORDED.items():
        got = continue_greedily(model, tokenizer, prompt, len(expected))
        line = compare(tokenizer, expected, got)
        differing += line is not None
        print(f"{prompt!r}: {line or f'OK, all {len(expected)} tokens as recorded'}")
    return 1 if differing else 0


def continue_greedily(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int
) -> tuple[int, ...]:
    """Up to ``tokens`` ids after the prompt; fewer if the model ends its text."""
    ids = [BEGIN_ID, *tokenizer.encode(prompt, add_special_tokens=False)]
    inputs = torch.tensor([ids], device=model.device)
    output = model.generate(inputs, max_new_tokens=tokens, do_sample=False, temperature=None)
    return tuple(output[0, len(ids) :].tolist())


def compare(tokenizer: PreTrainedTokenizerBase, expected: tuple[int, ...], got: tuple[int, ...]) -> str | None:
    """The first step at which ``got`` leaves ``expected``, in words; None if it does not."""
    for step, token in enumerate(expected):
        found = got[step] if step < len(got) else None
        if found != token:
            shown = "the end of the text" if found is None else f"{found} {tokenizer.decode([found])!r}"
            wanted = f"{token} {tokenizer.decode([token])!r}"
            return f"DIFFERS at step {step + 1} of {len(expected)}: expected {wanted}, got {shown}"
    return None
