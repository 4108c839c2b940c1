"""SGLang's backend of both kinds of layers, with our commit of what a verify step accepted."""

from typing import Any

import torch
from sglang.srt.layers.attention.hybrid_linear_attn_backend import HybridLinearAttnBackend


class SalaHybridBackend(HybridLinearAttnBackend):
    """Lightning layers keep the rows of a verify step, not a state per row, and make the next state from them."""

    def update_mamba_state_after_mtp_verify(
        self,
        last_correct_step_indices: torch.Tensor,
        mamba_track_indices: torch.Tensor | None,
        mamba_steps_to_track: torch.Tensor | None,
        model: Any,
        req_pool_indices: torch.Tensor | None = None,
    ) -> None:
        """Called by SGLang once after every verify step; the names are its own.

        last_correct_step_indices [B]: the row that was accepted last. mamba_track_indices [B]: slots for snapshots of
        the prefix cache, −1 where the request is gone. mamba_steps_to_track [B]: rows whose states these are, −1 for
        none.
        """
        backend = self.linear_attn_backend
        slots, rows = mamba_track_indices, mamba_steps_to_track
        if slots is not None and rows is not None:
            slots, rows = backend._translate_mamba_indices(slots), rows + 1
        backend.commit(last_correct_step_indices + 1, slots, rows)
