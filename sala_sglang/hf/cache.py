"""What a sequence leaves behind for its next tokens: keys and values, or a recurrent state, per layer."""

from dataclasses import dataclass, field

import torch


@dataclass
class SequenceCache:
    """One sequence. Padding never enters, so ``tokens`` counts real tokens only.

    keys, values: per sparse layer [tokens, Hkv, D]. states: per lightning layer [H, D, D] float32 or better.
    """

    tokens: int = 0
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    states: dict[int, torch.Tensor] = field(default_factory=dict)

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new tokens [n, Hkv, D] to a sparse layer; returns all keys and values."""
        if layer in self.keys:
            keys = torch.cat((self.keys[layer], keys))
            values = torch.cat((self.values[layer], values))
        self.keys[layer], self.values[layer] = keys, values
        return keys, values

    def copy(self) -> "SequenceCache":
        """A cache that grows by itself. The tensors are shared: none is ever changed in place."""
        return SequenceCache(self.tokens, dict(self.keys), dict(self.values), dict(self.states))


class SALACache:
    """Cache of a batch, with the part of the interface of transformers' caches that ``generate`` uses.

    ``sequences`` is empty until the first forward call. ``columns`` counts input columns, padding included.
    A forward call extends the cache that it is given.
    """

    is_compileable = False

    def __init__(self) -> None:
        self.sequences: list[SequenceCache] = []
        self.columns = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Input columns seen so far; ``generate`` cuts the columns of the next call after them."""
        return self.columns

    def of_batch(self, batch: int) -> list[SequenceCache]:
        """The ``batch`` sequences, empty ones at first. Raises ValueError if the cache holds another number."""
        if not self.sequences:
            self.sequences = [SequenceCache() for _ in range(batch)]
        if len(self.sequences) != batch:
            raise ValueError(f"the cache holds {len(self.sequences)} sequences, the input {batch}")
        return self.sequences

    def advance(self, rows: list[int], columns: int) -> None:
        """Count the tokens of a finished forward call: real ones per sequence, and input columns."""
        for sequence, count in zip(self.sequences, rows, strict=True):
            sequence.tokens += count
        self.columns += columns

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Keep the sequences ``beam_idx`` [B], which may repeat."""
        self.sequences = [self.sequences[i].copy() for i in beam_idx.tolist()]
