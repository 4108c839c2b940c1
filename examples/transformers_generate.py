"""The plain PyTorch model in transformers: ``python examples/transformers_generate.py [CHECKPOINT]``.

Needs no SGLang and no ``trust_remote_code``. Prints the answers to two questions, generated as one padded batch.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import sala_sglang.hf  # noqa: F401  registers MiniCPM-SALA with the Auto classes

checkpoint = sys.argv[1] if len(sys.argv) > 1 else "checkpoints/sala-tiny"
tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", device_map="auto")

questions = ["Who are you?", "What is the capital of France?"]
turns = [[{"role": "user", "content": question}] for question in questions]
options = {"add_generation_prompt": True, "padding": True, "return_dict": True, "return_tensors": "pt"}
inputs = tokenizer.apply_chat_template(turns, **options).to(model.device)
generated = model.generate(**inputs, max_new_tokens=64, do_sample=False)[:, inputs["input_ids"].shape[1] :]
for question, answer in zip(questions, tokenizer.batch_decode(generated, skip_special_tokens=True), strict=True):
    print(f"{question} {answer}")
