"""Ids of LoRA adapters by what is in them.

SGLang makes the id of an adapter of ``--lora-paths`` from its name and path, and the prefix cache keeps its pages under
that id. In files (``storage.py``) they outlive the server, and the adapter at that path may be another one by then.
"""

from collections.abc import Callable
from pathlib import Path


def adapter_id(original: Callable, lora_name: str, lora_path: str) -> str:
    """The id of an adapter of ``--lora-paths``, under which its pages are kept, also in files: by its content too."""
    import xxhash
    from huggingface_hub import snapshot_download

    kinds = "*.json", "*.safetensors", "*.bin"
    folder = Path(lora_path)
    if not folder.is_dir():  # then SGLang takes it for the name of an adapter on the hub
        folder = Path(snapshot_download(lora_path, allow_patterns=list(kinds)))
    checksum = xxhash.xxh3_128()
    for file in sorted(file for kind in kinds for file in folder.glob(kind)):
        checksum.update(file.name.encode())
        checksum.update(file.read_bytes())
    return original(lora_name, f"{lora_path}\0{checksum.hexdigest()}")


# SGLang's functions and what runs around them.
HOOKS: dict[str, Callable] = {"sglang.srt.lora.lora_registry.LoRARef.deterministic_id": adapter_id}
