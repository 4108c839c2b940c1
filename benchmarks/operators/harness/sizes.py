"""The sizes that are measured: those of the released model, and tiny ones for a run without a GPU."""

from dataclasses import dataclass, replace
from random import Random

from sala_kernels.layout import SparseGeometry


@dataclass(frozen=True)
class Sizes:
    """Heads and dimensions of the model, and the lengths of the cases in tokens.

    query_heads is also the number of heads of the lightning layers. chunk_tokens: rows of a prefill step; tails: of
    shorter ones, with the last of a prompt. contexts: a long and the longest prompt. mixed_lengths: requests of a
    decode step. prompts: number and length of short prompts in one step. state_batches: requests of a decode step of
    the lightning layers.
    """

    geometry: SparseGeometry
    query_heads: int
    kv_heads: int
    head_dim: int
    chunk_tokens: int
    tails: tuple[int, ...]
    contexts: tuple[int, int]
    mixed_lengths: tuple[int, ...]
    prompts: tuple[int, int]
    state_batches: tuple[int, ...]
    copy_bytes: int
    matmul_side: int

    @property
    def width(self) -> int:
        """Width of the attention output, which is the hidden size too."""
        return self.query_heads * self.head_dim

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    def of_rank(self, ranks: int) -> "Sizes":
        """Heads of each of ``ranks`` GPUs, of which several share a KV head where there are more than KV heads.

        ValueError unless they divide the query heads, and divide the KV heads or are divided by them.
        """
        if ranks < 1 or self.query_heads % ranks or (ranks % self.kv_heads and self.kv_heads % ranks):
            heads = f"{self.query_heads} query heads and {self.kv_heads} KV heads"
            raise ValueError(f"{ranks} ranks; allowed: divisors of {heads}, or multiples of the KV heads")
        return replace(self, query_heads=self.query_heads // ranks, kv_heads=max(1, self.kv_heads // ranks))


def evenly_mixed(shortest: int, longest: int, requests: int) -> tuple[int, ...]:
    """Lengths in equal steps from ``shortest`` to ``longest`` tokens, in a fixed random order."""
    lengths = [shortest + (longest - shortest) * i // (requests - 1) for i in range(requests)]
    Random(0).shuffle(lengths)
    return tuple(lengths)


RELEASED = Sizes(
    geometry=SparseGeometry(),
    query_heads=32,
    kv_heads=2,
    head_dim=128,
    chunk_tokens=8192,
    tails=(544, 1056, 1200, 2112, 2256, 4224),
    contexts=(131_072, 1_048_576),
    mixed_lengths=evenly_mixed(4096, 524_288, 32),
    prompts=(16, 512),
    state_batches=(1, 32, 128),
    copy_bytes=2**31,
    matmul_side=8192,
)
TINY = Sizes(
    geometry=SparseGeometry(block_size=16, kernel_size=8, kernel_stride=4, local_blocks=2, selected_blocks=6),
    query_heads=4,
    kv_heads=2,
    head_dim=16,
    chunk_tokens=64,
    tails=(8,),
    contexts=(320, 640),
    mixed_lengths=evenly_mixed(32, 512, 4),
    prompts=(2, 32),
    state_batches=(1, 2, 3),
    copy_bytes=2**16,
    matmul_side=64,
)
