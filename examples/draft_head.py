"""Several tokens per step, drafted by a head: ``python examples/draft_head.py [CHECKPOINT [HEAD]]``.

SGLang's engine runs in this program and takes the options of the server. Prints three answers, which are those without
a head, with their tokens and the steps that verified drafts.
"""

import sys

import sglang
import torch
from transformers import AutoTokenizer

CHECKPOINT, HEAD = [*sys.argv[1:], *("checkpoints/sala-tiny", "checkpoints/sala-tiny-eagle3")[len(sys.argv) - 1 :]]
QUESTIONS = "Who are you?", "What is the capital of France?", "Tell me a story."


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    drafts = {"speculative_algorithm": "EAGLE3", "speculative_draft_model_path": HEAD}
    with sglang.Engine(model_path=CHECKPOINT, device=device, **drafts) as engine:
        answers = engine.generate(prompts, {"temperature": 0, "max_new_tokens": 64})
    for answer in answers:
        tokens, steps = answer["meta_info"]["completion_tokens"], answer["meta_info"]["spec_verify_ct"]
        print(f"{answer['text']} ({tokens} tokens, {steps} steps)")


if __name__ == "__main__":  # the engine's processes import this file
    main()
