"""Names, dtypes and shapes of a checkpoint's tensors, from the headers of its files."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a file says of a tensor before its values. dtype: torch's, or the name where torch has none."""

    dtype: torch.dtype | str
    shape: tuple[int, ...]


def read_headers(folder: Path) -> dict[str, Header]:
    """The tensors of all safetensors files that the index names, or of all there are.

    Raises FileNotFoundError where there is none, and ValueError for a tensor in two files.
    """
    return {name: header for name, (header, _) in find_tensors(folder).items()}


def find_tensors(folder: Path) -> dict[str, tuple[Header, Path]]:
    """The same, with the file of each."""
    index = folder / INDEX
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no *.safetensors")
    found: dict[str, tuple[Header, Path]] = {}
    for file in files:
        for name, header in _read(folder / file).items():
            if name in found:
                raise ValueError(f"the checkpoint has {name} twice, again in {file}")
            found[name] = header, folder / file
    return found


def _read(path: Path) -> dict[str, Header]:
    with path.open("rb") as file:
        given = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    given.pop("__metadata__", None)
    return {name: Header(DTYPES.get(one["dtype"], one["dtype"]), tuple(one["shape"])) for name, one in given.items()}


def find_configuration(folder: Path, config: object) -> dict | None:
    """The ``quantization_config`` of a checkpoint, by any of its names; None where it has none.

    config: that of the model, as read from config.json. folder: where GPTQ's tools have a file of their own.
    """
    for field in ("quantization_config", "compression_config"):
        given = getattr(config, field, None)
        if given:
            return dict(given)
    for file, method in (("quantize_config.json", "gptq"), ("hf_quant_config.json", "modelopt")):
        if (folder / file).is_file():
            return {"quant_method": method, **json.loads((folder / file).read_text())}
    return None
