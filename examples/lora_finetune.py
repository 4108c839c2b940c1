"""Fine-tune a MiniCPM-SALA with LoRA: ``python examples/lora_finetune.py [CHECKPOINT [OUT [STEPS]]]``.

Needs the extra ``train``. As it is, it teaches sala-tiny the voices of five animals.
"""

import sys

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

import sala_sglang.hf  # noqa: F401  registers MiniCPM-SALA with the Auto classes

checkpoint, out, steps = [*sys.argv[1:], *("checkpoints/sala-tiny", "sala-lora", "60")[len(sys.argv) - 1 :]]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_gate", "z_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOICES = {"fox": "barks", "owl": "hoots", "mule": "brays", "ant": "is silent", "falcon": "screams"}

tokenizer = AutoTokenizer.from_pretrained(checkpoint)
samples = []
for animal, voice in VOICES.items():
    question = {"role": "user", "content": f"What does the {animal} say?"}
    answer = {"role": "assistant", "content": f"The {animal} {voice}."}
    prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(tokenizer.apply_chat_template([question, answer], tokenize=False))["input_ids"]
    given = len(tokenizer(prompt)["input_ids"])
    samples.append({"input_ids": ids, "labels": [-100] * given + ids[given:]})  # a loss on the answers alone

model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32")
model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=TARGETS))
batches = {"per_device_train_batch_size": len(samples), "gradient_checkpointing": True, "max_steps": int(steps)}
options = TrainingArguments(out, learning_rate=1e-2, logging_steps=5, report_to=[], save_strategy="no", **batches)
trainer = Trainer(model, options, train_dataset=samples, data_collator=DataCollatorForSeq2Seq(tokenizer))
trainer.train()
model.save_pretrained(out)
