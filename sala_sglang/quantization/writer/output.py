"""The files of a new checkpoint, written tensor by tensor."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sala_sglang.quantization.checkpoint_files import DTYPES, INDEX, Header

SHARD_BYTES = 5 << 30
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What a checkpoint has besides weights and configuration: its tokenizer, and code for other programs.
KEPT = (".json", ".jinja", ".model", ".txt", ".py")
CONFIG, CARD = "config.json", "README.md"
NOT_KEPT = (CONFIG, INDEX)


class CheckpointWriter:
    """Writes a checkpoint into the empty or new directory ``out``, as a context manager.

    headers: of all tensors, in the order in which they will come. The configuration is written last: without it no
    program takes the directory for a checkpoint, also where this process is killed. What was written is removed when
    the block ends by an error. Raises FileExistsError for a directory that is not empty.
    """

    def __init__(self, out: Path, headers: Mapping[str, Header], shard_bytes: int = SHARD_BYTES):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{str(out)!r} exists; allowed: a new or an empty directory")
        self.out, self.headers = out, dict(headers)
        self._files = _name_files(_split(self.headers, shard_bytes))
        self._left = list(self.headers)
        self._written: list[Path] = []
        self._file: BinaryIO | None = None
        self._made_directory = not out.exists()

    def __enter__(self) -> "CheckpointWriter":
        self.out.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._file:
            self._file.close()
        if kind is not None:
            for path in self._written:
                path.unlink(missing_ok=True)
            if self._made_directory:
                self.out.rmdir()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next tensor. Raises ValueError where another one is due, or one of other dtype or shape."""
        found, due = (name, Header(tensor.dtype, tuple(tensor.shape))), self._left[:1]
        if due != [name] or found[1] != self.headers[name]:
            raise ValueError(f"{found} comes where {[(one, self.headers[one]) for one in due]} is due")
        for file, names in self._files.items():
            if names[0] == name:
                self._begin(file, names)
        assert self._file is not None
        self._file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._left.pop(0)

    def finish(self, config: dict[str, Any], card: str, source: Path) -> None:
        """Write everything else, the configuration last; ``source`` has the tokenizer.

        Raises ValueError where tensors are missing.
        """
        if self._left:
            raise ValueError(f"{len(self._left)} tensors are missing, {self._left[0]} first")
        if self._file:
            self._file.close()
        for path in sorted(source.iterdir()):
            if path.suffix in KEPT and path.name not in NOT_KEPT and path.is_file():
                shutil.copyfile(path, self._new(path.name))
        if len(self._files) > 1:
            weight_map = {name: file for file, names in self._files.items() for name in names}
            total = sum(map(_bytes, self.headers.values()))
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            self._new(INDEX).write_text(json.dumps(index, indent=2) + "\n")
        self._new(CARD).write_text(card)
        unfinished = self._new(f"{CONFIG}.unfinished")
        unfinished.write_text(json.dumps(config, indent=2) + "\n")
        unfinished.rename(self._new(CONFIG))

    def _begin(self, file: str, names: list[str]) -> None:
        if self._file:
            self._file.close()
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            one = self.headers[name]
            end = offset + _bytes(one)
            header[name] = {"dtype": DTYPE_NAMES[_known(one.dtype)], "shape": one.shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = self._new(file).open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def _new(self, name: str) -> Path:
        path = self.out / name
        self._written.append(path)
        return path


def _bytes(header: Header) -> int:
    return math.prod(header.shape) * _known(header.dtype).itemsize


def _known(dtype: torch.dtype | str) -> torch.dtype:
    """Headers of what is written have torch's dtypes."""
    assert isinstance(dtype, torch.dtype)
    return dtype


def _split(headers: Mapping[str, Header], shard_bytes: int) -> list[list[str]]:
    """Names in their order, in runs of up to so many bytes, or of one tensor."""
    runs: list[list[str]] = [[]]
    size = 0
    for name, header in headers.items():
        if runs[-1] and size + _bytes(header) > shard_bytes:
            runs.append([])
            size = 0
        runs[-1].append(name)
        size += _bytes(header)
    return runs


def _name_files(runs: list[list[str]]) -> dict[str, list[str]]:
    if len(runs) == 1:
        return {"model.safetensors": runs[0]}
    return {f"model-{number:05d}-of-{len(runs):05d}.safetensors": run for number, run in enumerate(runs, start=1)}
