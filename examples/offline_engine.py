"""Answers without a server: ``python examples/offline_engine.py [CHECKPOINT]``.

SGLang's engine runs in this program and takes the options of the server. Prints three answers, computed as one batch.
"""

import sys

import sglang
import torch
from transformers import AutoTokenizer

CHECKPOINT = sys.argv[1] if len(sys.argv) > 1 else "checkpoints/sala-tiny"
QUESTIONS = "Who are you?", "What is the capital of France?", "Tell me a story."


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with sglang.Engine(model_path=CHECKPOINT, device=device) as engine:
        answers = engine.generate(prompts, {"temperature": 0, "max_new_tokens": 64})
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question} {answer['text']}")


if __name__ == "__main__":  # the engine's processes import this file
    main()
