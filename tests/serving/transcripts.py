"""Greedy answers of sala-tiny as the plain model gives them in float32, kept in ``transcripts.json``.

    python -m tests.serving.transcripts

writes the file again, after a change of the checkpoint and never of the code that serves it.
"""

import json
from pathlib import Path
from random import Random

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sala_sglang.evaluation.samples import TASKS, SampleMaker
from sala_sglang.hf import MiniCPMSALAForCausalLM

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "sala-tiny"
FILE = Path(__file__).with_name("transcripts.json")
SMALL_TALK = (
    "Hello!",
    "Who are you?",
    "Tell me a story.",
    "What is the capital of France?",
    "Briefly explain gravity.",
)
LENGTHS = (600, 1023, 1024, 3000)  # tokens; dense_len is 1,024
ANSWER_TOKENS = 64


def messages(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """A user's message by its name: small talk, and every task of the evaluation at every length."""
    maker = SampleMaker(tokenizer)
    found = {text: text for text in SMALL_TALK}
    for task in TASKS:
        for tokens in LENGTHS:
            name = f"{task} in {tokens} tokens"
            found[name] = maker.sample(Random(name), task, tokens, depth=0.4).message
    return found


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    model = MiniCPMSALAForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    answers = {}
    for name, message in messages(tokenizer).items():
        chat = [{"role": "user", "content": message}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)[0]
        answers[name] = tokenizer.decode(output[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"{name}: {answers[name]}")
    FILE.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
