"""Attention of a draft model's steps on a machine without CUDA, over SGLang's attention in torch."""

from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.model_runner import ModelRunner


class TorchStep(TorchNativeAttnBackend):
    """A step whose rows attend to ``ahead`` tokens behind those that were accepted, their own included."""

    def __init__(self, runner: ModelRunner, ahead: int):
        super().__init__(runner)
        self.ahead = ahead

    def _run_sdpa_forward_decode(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The names of the arguments are SGLang's; ``seq_lens`` is the one that changes."""
        query, output, keys, values, slots, rows, lengths, *others = args
        return super()._run_sdpa_forward_decode(
            query, output, keys, values, slots, rows, lengths + self.ahead, *others, **kwargs
        )


class TorchSteps(TorchNativeAttnBackend):
    """What SGLang asks for the backends of all steps."""

    def __init__(self, runner: ModelRunner, steps: int):
        super().__init__(runner)
        self.attn_backends = [TorchStep(runner, step + 1) for step in range(steps - 1)]

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        for backend in self.attn_backends:
            backend.init_forward_metadata(forward_batch)
