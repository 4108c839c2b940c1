"""What every sparse operator shares: the geometry of blocks and windows, and where a request's tokens lie.

Compressed keys are addressed by *slots*. Slot ``c`` of a stride ``s`` holds the mean over the window of
keys that ends with token ``s·(c+1) − 1``, so slot ``c`` exists once that token does, is visible to query
``t`` iff ``c < (t+1)//s``, and lies in the page of its window's last token. Window ``j`` of the model
specification is slot ``j + overlap``; the first ``overlap`` slots would begin before the prompt and stay
unused.

The examples of the operators use this ``geometry`` and this ``batch``, a decode step of one request beside the
prompt of another:

>>> geometry = SparseGeometry(block_size=4, kernel_size=2, kernel_stride=1, local_blocks=0, selected_blocks=3)
>>> batch = PagedBatch(
...     query_start=torch.tensor([0, 1, 3], dtype=torch.int32),  # row 0; rows 1 and 2
...     kv_lens=torch.tensor([16, 2], dtype=torch.int32),
...     sparse_from=torch.tensor([0, 0], dtype=torch.int32),  # all rows select blocks
...     request_rows=torch.tensor([0, 1]),
...     token_slots=torch.arange(4, 36, dtype=torch.int32).view(2, 16),  # pages 1 to 4; page 5 and following
...     max_query_tokens=2,
...     max_kv_tokens=16,
... )
>>> batch.pages(0, geometry.block_size), batch.pages(1, geometry.block_size)
(tensor([1, 2, 3, 4]), tensor([5]))
"""

from dataclasses import dataclass

import torch

COARSE_FACTOR = 4  # K2 windows and strides are four times those of K1


@dataclass(frozen=True)
class SparseGeometry:
    """Sizes of InfLLM-V2 block-sparse attention; the defaults are the released ones.

    Units are tokens (``*_size``, ``kernel_stride``, ``dense_len``) or blocks (``*_blocks``).
    ``local_blocks`` counts the blocks before the current one; the current one is always taken too.

    block_size: tokens of a block, and of a page.
    kernel_size: tokens of a K1 window.
    kernel_stride: tokens from one K1 window to the next. K2 windows and strides are four times those of K1.
    init_blocks: blocks from the first on that every row takes.
    local_blocks: blocks before the current one that every row takes.
    selected_blocks: blocks that a row takes in all, the forced ones among them.
    dense_len: a prompt of fewer tokens attends to everything. For callers, who set ``sparse_from`` by it.

    Source: InfLLM-V2 (arXiv 2509.24663), section 3; values from ``sparse_config`` of the released config.json.

    >>> released = SparseGeometry()
    >>> released.fine_rows, released.coarse_rows, released.page_rows, released.overlap
    (4, 1, 5, 1)
    >>> released.compressed_bytes_per_token(layers=8, kv_heads=2, head_dim=128, itemsize=2)
    320
    """

    block_size: int = 64
    kernel_size: int = 32
    kernel_stride: int = 16
    init_blocks: int = 1
    local_blocks: int = 32
    selected_blocks: int = 96
    dense_len: int = 8192

    @property
    def fine_rows(self) -> int:
        """K1 slots per page."""
        return self.block_size // self.kernel_stride

    @property
    def coarse_stride(self) -> int:
        """Tokens from one K2 window to the next."""
        return COARSE_FACTOR * self.kernel_stride

    @property
    def coarse_rows(self) -> int:
        """K2 slots per page."""
        return self.block_size // self.coarse_stride

    @property
    def page_rows(self) -> int:
        """Compressed rows that live with one page: K1 slots, then K2 slots."""
        return self.fine_rows + self.coarse_rows

    @property
    def overlap(self) -> int:
        """Strides by which a window reaches back beyond its own; the same for K1 and K2."""
        return self.kernel_size // self.kernel_stride - 1

    def compressed_bytes_per_token(self, layers: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
        """Bytes of compressed keys per token over all layers, rounded up (released model: 320 at bfloat16)."""
        page_bytes = layers * kv_heads * self.page_rows * head_dim * itemsize
        return -(-page_bytes // self.block_size)


@dataclass(frozen=True)
class PagedBatch:
    """The requests of one step and where their tokens lie in the paged pools.

    query_start: [B+1] int32; request b owns rows ``query_start[b]`` … ``query_start[b+1]−1`` of the step. Rows behind
        the last request are nobody's, and what sparse operators leave there is not defined.
    kv_lens: [B] int32; tokens of the request including this step's. Its queries are the last of them.
    sparse_from: [B] int32; queries at this position and behind it select blocks, those before attend to every block.
    request_rows: [B] int64; the request's row of ``token_slots``.
    token_slots: [R, max_tokens] int32; pool slot of each token. Pages are blocks, so block j of a request
        lies in page ``token_slots[row, j·block_size] // block_size``.
    max_query_tokens, max_kv_tokens: host-side upper bounds on a request's rows and length; they size
        launch grids and scratch, never results.

    With the batch of the example above:

    >>> batch.rows(1)
    (slice(1, 3, None), tensor([0, 1]))
    >>> batch.slots(1)
    tensor([20, 21])
    """

    query_start: torch.Tensor
    kv_lens: torch.Tensor
    sparse_from: torch.Tensor
    request_rows: torch.Tensor
    token_slots: torch.Tensor
    max_query_tokens: int
    max_kv_tokens: int

    @property
    def size(self) -> int:
        """Number of requests, B."""
        return self.kv_lens.shape[0]

    def rows(self, request: int) -> tuple[slice, torch.Tensor]:
        """Rows of the step that belong to ``request``, and their positions [rows] int64. Reads the device."""
        start, end = self.query_start[request : request + 2].tolist()
        length = int(self.kv_lens[request])
        positions = torch.arange(length - (end - start), length, device=self.kv_lens.device)
        return slice(start, end), positions

    def slots(self, request: int) -> torch.Tensor:
        """Pool slots of all tokens of ``request``, [kv_len] int64. Reads the device."""
        row = self.token_slots[self.request_rows[request]]
        return row[: int(self.kv_lens[request])].long()

    def pages(self, request: int, block_size: int) -> torch.Tensor:
        """Pages of ``request`` in order, [NB] int64. Reads the device."""
        return self.slots(request)[::block_size] // block_size
