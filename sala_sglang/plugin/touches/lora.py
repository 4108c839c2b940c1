"""Touches for adapters: ``lora.py``, ``adapter_ids.py``, ``models/lora.py``, and what ``cpu.py`` opens for them."""

from sala_sglang.plugin.touches.touch import AROUND, EVERY, NO_CUDA, REPLACED, WORKER, Touch

LORA = "--enable-lora"

_ANYWHERE = (
    Touch(
        target="sglang.srt.lora.lora_registry.LoRARef.deterministic_id",
        how=AROUND,
        process=EVERY,
        when="--lora-paths",
        why="an adapter's pages in files go by its name and path, and would be taken for those of another at that path",
        until="SGLang's ids depend on what an adapter contains",
    ),
    Touch(
        target="sglang.srt.lora.utils.get_normalized_target_modules",
        how=AROUND,
        process=WORKER,
        when=LORA,
        why="q, k, v and gate are one layer here, whose name SGLang does not know: it would drop them in silence",
        until="a model can name its merged layers",
    ),
    Touch(
        target="sglang.srt.lora.utils.auto_detect_lora_target_modules",
        how=AROUND,
        process=WORKER,
        when=LORA,
        why="SGLang leaves layers out of all-linear whose names it does not know",
        until="a model can name its merged layers",
    ),
    Touch(
        target="sglang.srt.lora.lora_manager.LoRAManager.validate_new_adapter",
        how=AROUND,
        process=WORKER,
        when=LORA,
        why="SGLang loads adapters and leaves out biases, whole layers and single rows without a word",
        until="SGLang refuses them",
    ),
    Touch(
        target="sglang.srt.lora.lora.LoRAAdapter._normalize_weights",
        how=AROUND,
        process=WORKER,
        when=LORA,
        why="tensors are stacked as this model's layers are, KV heads copied, ranks and factors of single layers kept",
        until="a model can stack them",
    ),
)

_ON_CPU = tuple(
    Touch(
        target=f"sglang.srt.lora.{module}.torch",
        how=REPLACED,
        process=WORKER,
        when=f"{LORA} on {NO_CUDA}",
        why="tables of LoRA are pinned, which needs a driver",
        until="SGLang pins only where there is an accelerator",
    )
    for module in ("layers", "backend.torch_backend")
)

TOUCHES = (*_ANYWHERE, *_ON_CPU)
