"""Fine-tune a MiniCPM-SALA with LoRA: ``python examples/lora_finetune.py [CHECKPOINT [OUT [STEPS]]]``.

Needs the extra ``train``. As it is, it teaches sala-tiny the voices of animals, on a CPU, in about a minute.
"""

import sys

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

import sala_sglang.hf  # noqa: F401  registers MiniCPM-SALA with the Auto classes

checkpoint, out, steps = [*sys.argv[1:], *("checkpoints/sala-tiny", "sala-lora", "60")[len(sys.argv) - 1 :]]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_gate", "z_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOICES = {"fox": "barks", "owl": "hoots", "mule": "brays", "ant": "is silent", "falcon": "screams"}

tokenizer = AutoTokenizer.from_pretrained(checkpoint)
chats = [
    [
        {"role": "user", "content": f"What does the {animal} say?"},
        {"role": "assistant", "content": f"The {animal} {says}."},
    ]
    for animal, says in VOICES.items()
]
samples = [{"input_ids": tokenizer(tokenizer.apply_chat_template(chat, tokenize=False)).input_ids} for chat in chats]

model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32")
model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=TARGETS))
options = TrainingArguments(
    out,
    max_steps=int(steps),
    learning_rate=5e-3,
    per_device_train_batch_size=5,
    gradient_checkpointing=True,
    logging_steps=5,
    save_strategy="no",
    report_to=[],
)
collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
trainer = Trainer(model, options, train_dataset=samples, data_collator=collator)
trainer.train()
model.save_pretrained(out)
