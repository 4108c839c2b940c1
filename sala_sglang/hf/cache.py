"""What a sequence leaves behind for its next tokens: keys and values, or a recurrent state, per layer."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache


@dataclass
class SequenceCache:
    """One sequence. Padding never enters, so ``tokens`` counts real tokens only.

    keys, values: per sparse layer [tokens, Hkv, D]. states: per lightning layer [H, D, D] float32 or better.
    """

    tokens: int = 0
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    states: dict[int, torch.Tensor] = field(default_factory=dict)

    def extended(self, tokens: int) -> "SequenceCache":
        """A cache of so many tokens more that grows by itself. The tensors are shared: none is changed in place."""
        return SequenceCache(self.tokens + tokens, dict(self.keys), dict(self.values), dict(self.states))


class SALACache(Cache):
    """Cache of a batch, with the part of the interface of transformers' caches that is not about single layers.

    ``sequences`` is empty until the first forward call. ``columns`` counts input columns, padding included.
    A forward call extends the cache that it is given, unless it raises an error.
    """

    is_compileable = False
    is_croppable = False  # a recurrent state cannot go back

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.sequences: list[SequenceCache] = []
        self.columns = 0

    def __repr__(self) -> str:
        return f"SALACache({[sequence.tokens for sequence in self.sequences]} tokens)"

    def __bool__(self) -> bool:
        return True  # also while it is empty

    @property
    def batch_size(self) -> int:
        """Number of sequences, −1 before the first call."""
        return len(self.sequences) or -1

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """−1: there is no limit."""
        return -1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Input columns seen so far; ``generate`` cuts the columns of the next call after them."""
        return self.columns

    def of_batch(self, batch: int) -> list[SequenceCache]:
        """The ``batch`` sequences, empty ones at first. Raises ValueError if the cache holds another number."""
        sequences = self.sequences or [SequenceCache() for _ in range(batch)]
        if len(sequences) != batch:
            raise ValueError(f"past_key_values: the cache holds {len(sequences)} sequences, the input {batch}")
        return sequences

    def advance(self, sequences: list[SequenceCache], columns: int) -> None:
        """Hold ``sequences`` after a finished forward call of so many input columns."""
        self.sequences = sequences
        self.columns += columns

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Keep the sequences ``beam_idx`` [B], which may repeat."""
        self.sequences = [self.sequences[i] for i in beam_idx.tolist()]

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Keep every sequence ``repeats`` times: one prompt for several answers."""
        self.sequences = [sequence for sequence in self.sequences for _ in range(repeats)]

    def reset(self) -> None:
        """Forget all sequences."""
        self.sequences, self.columns = [], 0

    def crop(self, *args: Any) -> None:
        """Raises ValueError: the tokens cannot be taken out of a recurrent state again."""
        raise ValueError("a SALACache cannot be cropped; copy it (copy.deepcopy) before the tokens that may have to go")
