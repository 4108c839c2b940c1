"""The weights of a checkpoint, a tensor at a time: as files have them, or those that quantised layers stand for."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sala_sglang.checkpoint.parameter_shapes import Shape, tensor_shapes
from sala_sglang.config import SALAConfig
from sala_sglang.quantization.checkpoint_files import find_configuration, find_tensors
from sala_sglang.quantization.plan import WEIGHT, Expected, QuantizationPlan
from sala_sglang.quantization.scheme import FLOATS, Scheme


class CheckpointWeights:
    """Reads the checkpoint in ``folder``.

    config, shapes: of the model. headers: of every tensor. schemes: of the linear layers that are quantised. Raises
    ValueError naming the tensor where the files are not those of the model, and FileNotFoundError without files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = SALAConfig.from_pretrained(folder)
        self.shapes: dict[str, Shape] = tensor_shapes(self.config)
        found = find_tensors(folder)
        self.headers = {name: header for name, (header, _) in found.items()}
        self._files = {name: file for name, (_, file) in found.items()}
        self._open: dict[Path, Any] = {}
        given = find_configuration(folder, self.config)
        self.schemes: dict[str, Scheme] = {}
        if given:
            self.schemes = QuantizationPlan(self.config, given, self.headers).schemes
        else:
            self._check_plain()

    def _check_plain(self) -> None:
        if different := self.shapes.keys() ^ self.headers.keys():
            raise ValueError(f"{self.folder}: the checkpoint lacks or does not know {', '.join(sorted(different)[:8])}")
        for name, header in self.headers.items():
            Expected(FLOATS, self.shapes[name]).check(name, header.dtype, header.shape)

    def stored(self, name: str) -> torch.Tensor:
        """A tensor as the files have it."""
        file = self._files[name]
        if file not in self._open:
            self._open[file] = safe_open(file, "pt")
        return self._open[file].get_tensor(name)

    def weight(self, name: str) -> torch.Tensor:
        """The tensor of the unquantised model by its released name; float32 where its layer is quantised."""
        linear = name.removesuffix(WEIGHT)
        if linear not in self.schemes:
            return self.stored(name)
        suffixes = [one for one in self.schemes[linear].stored() if f"{linear}.{one}" in self._files]
        tensors = {suffix: self.stored(f"{linear}.{suffix}") for suffix in suffixes}
        for scalar in [suffix for suffix, one in tensors.items() if one.dim() == 0]:
            tensors[scalar] = tensors[scalar].reshape(1)  # merged layers have one for each of their parts
        return self.schemes[linear].dequantize(tensors, [self.shapes[name][0]])
