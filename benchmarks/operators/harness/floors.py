"""What a case cannot avoid: the bytes that must be moved and the floating-point operations that must be done.

A call reads every input element once and writes every output element once, however often an implementation does.
Weights of norms, positions, page numbers and other metadata, far below 1 % of the rest, are not counted. A product of
matrices counts two operations per multiplication and addition; softmax, norms and pooling count none.

A request is (length, rows): its tokens including this step's, and the rows of this step, which are the last of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sala_kernels.layout import COARSE_FACTOR, SparseGeometry

from benchmarks.operators.harness.sizes import Sizes

ELEMENT_BYTES = 2  # bfloat16
STATE_BYTES = 4  # float32
ID_BYTES = 4  # int32
Requests = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Floor:
    """Bytes read and written, and operations. Memory that is updated in place counts as read and as written."""

    read_bytes: int
    written_bytes: int
    operations: int = 0

    @property
    def moved_bytes(self) -> int:
        return self.read_bytes + self.written_bytes

    def __add__(self, other: Floor) -> Floor:
        """Both, one after the other."""
        return Floor(
            self.read_bytes + other.read_bytes,
            self.written_bytes + other.written_bytes,
            self.operations + other.operations,
        )


def copy(size_bytes: int) -> Floor:
    """A copy of ``size_bytes``: read once and written once."""
    return Floor(size_bytes, size_bytes)


def matmul(side: int) -> Floor:
    """Product of two square matrices."""
    matrix_bytes = side * side * ELEMENT_BYTES
    return Floor(2 * matrix_bytes, matrix_bytes, 2 * side**3)


def product(rows: int, inputs: int, outputs: int) -> Floor:
    """Product of ``rows`` rows with a weight matrix [outputs, inputs]."""
    read = (rows + outputs) * inputs * ELEMENT_BYTES
    return Floor(read, rows * outputs * ELEMENT_BYTES, 2 * rows * inputs * outputs)


def row_wise(tokens: int, width: int, read: int, written: int) -> Floor:
    """An operator that reads ``read`` and writes ``written`` tensors [tokens, width] of bfloat16."""
    tensor_bytes = tokens * width * ELEMENT_BYTES
    return Floor(read * tensor_bytes, written * tensor_bytes)


def visible_rows(position: int, geometry: SparseGeometry) -> tuple[int, int]:
    """Complete K1 and K2 windows before and at ``position``."""
    strides = geometry.kernel_stride, geometry.coarse_stride
    fine, coarse = (max(0, (position + 1) // stride - geometry.overlap) for stride in strides)
    return fine, coarse


def scored_rows(position: int, geometry: SparseGeometry) -> int:
    """K1 windows that touch a block which is neither forced nor after ``position``: the others decide nothing."""
    end_block = position // geometry.block_size - geometry.local_blocks
    if end_block <= geometry.init_blocks:
        return 0
    first = max(geometry.overlap, geometry.init_blocks * geometry.fine_rows)
    return end_block * geometry.fine_rows + geometry.overlap - first


def select_blocks(requests: Requests, sizes: Sizes) -> Floor:
    """Selection for sparse requests.

    Operations: 2·D·Hq·(C1 + C2) per row, over all K1 and K2 windows visible to it; none for the top-k. Bytes: the
    queries, the block ids, and once per request the K2 windows visible to its last row and the K1 windows that are
    scored for it. Rows that take every block need only their ids written.
    """
    geometry, dim = sizes.geometry, sizes.head_dim
    all_taken = geometry.selected_blocks * geometry.block_size
    rows = sum(count for _, count in requests)
    queries = windows = products = 0
    for length, count in requests:
        positions = range(max(length - count, all_taken), length)
        if positions:
            queries += len(positions)
            windows += scored_rows(length - 1, geometry) + visible_rows(length - 1, geometry)[1]
            products += sum(sum(visible_rows(position, geometry)) for position in positions)
    return Floor(
        (queries * sizes.query_heads + windows * sizes.kv_heads) * dim * ELEMENT_BYTES,
        rows * sizes.kv_heads * geometry.selected_blocks * ID_BYTES,
        2 * dim * sizes.query_heads * products,
    )


def listed_blocks(position: int, geometry: SparseGeometry) -> int:
    """Blocks that a sparse row at ``position`` attends to."""
    return min(geometry.selected_blocks, position // geometry.block_size + 1)


def listed_tokens(position: int, geometry: SparseGeometry) -> int:
    """Tokens in those blocks that are not after ``position``."""
    return listed_blocks(position, geometry) * geometry.block_size - (-(position + 1) % geometry.block_size)


def sparse_attention(positions: Sequence[int], kv_tokens: int, sizes: Sizes) -> Floor:
    """Sparse rows at ``positions``.

    Operations: 4·D·Hq per token of the listed blocks, counted as whole blocks. Bytes: queries, output, block ids, and
    keys and values of ``kv_tokens`` distinct tokens, summed over the KV heads.
    """
    geometry = sizes.geometry
    row_bytes = len(positions) * sizes.width * ELEMENT_BYTES
    id_bytes = len(positions) * sizes.kv_heads * geometry.selected_blocks * ID_BYTES
    tokens = geometry.block_size * sum(listed_blocks(position, geometry) for position in positions)
    kv_bytes = 2 * kv_tokens * sizes.head_dim * ELEMENT_BYTES
    return Floor(row_bytes + id_bytes + kv_bytes, row_bytes, 4 * sizes.width * tokens)


def sparse_attention_step(lengths: Iterable[int], sizes: Sizes) -> Floor:
    """A decode step: the lists of its rows have nothing in common."""
    positions = [length - 1 for length in lengths]
    kv_tokens = sizes.kv_heads * sum(listed_tokens(position, sizes.geometry) for position in positions)
    return sparse_attention(positions, kv_tokens, sizes)


def dense_attention(tokens: int, sizes: Sizes) -> Floor:
    """A whole prompt with causal attention: 4·D·Hq operations per pair of a row and a token not after it."""
    row_bytes = tokens * sizes.width * ELEMENT_BYTES
    kv_bytes = 2 * tokens * sizes.kv_heads * sizes.head_dim * ELEMENT_BYTES
    return Floor(row_bytes + kv_bytes, row_bytes, 4 * sizes.width * (tokens * (tokens + 1) // 2))


def compress_keys(requests: Requests, sizes: Sizes) -> Floor:
    """Keys inside any window that ends in this step, read once, and a compressed row per window. No operations."""
    geometry = sizes.geometry
    tokens = windows = 0
    for length, rows in requests:
        spans = []
        for factor in (1, COARSE_FACTOR):
            size, stride = factor * geometry.kernel_size, factor * geometry.kernel_stride
            first = max(-(-(length - rows + 1) // stride), -(-size // stride)) * stride
            ends = range(first, length + 1, stride)
            windows += len(ends)
            spans.append((ends[0] - size, ends[-1]) if ends else (0, 0))
        (begin, end), (other_begin, other_end) = spans
        shared = max(0, min(end, other_end) - max(begin, other_begin))
        tokens += end - begin + other_end - other_begin - shared
    row_bytes = sizes.kv_heads * sizes.head_dim * ELEMENT_BYTES
    return Floor(tokens * row_bytes, windows * row_bytes)


def lightning_chunk(rows: Sequence[int], sizes: Sizes) -> Floor:
    """Requests of ``rows`` rows: q, k, v, output, and each state read and written.

    Operations: those of the recurrence, 2·D² for the update and 2·D² for the output per row and head.
    """
    tokens, heads, dim = sum(rows), sizes.query_heads, sizes.head_dim
    state_bytes = len(rows) * heads * dim * dim * STATE_BYTES
    row_bytes = tokens * heads * dim * ELEMENT_BYTES
    return Floor(3 * row_bytes + state_bytes, row_bytes + state_bytes, 4 * tokens * heads * dim * dim)


def lightning_step(requests: int, sizes: Sizes) -> Floor:
    """A decode step. Bytes are those of the states alone, read and written: the rows are below 1 % of them."""
    heads, dim = sizes.query_heads, sizes.head_dim
    state_bytes = requests * heads * dim * dim * STATE_BYTES
    return Floor(state_bytes, state_bytes, 4 * requests * heads * dim * dim)


def lightning_verify(requests: int, rows: int, sizes: Sizes) -> Floor:
    """A verify step of one layer: each state read, and q, k, v, output, and k and v that are kept, of every row."""
    heads, dim = sizes.query_heads, sizes.head_dim
    state_bytes = requests * heads * dim * dim * STATE_BYTES
    row_bytes = requests * rows * heads * dim * ELEMENT_BYTES
    return Floor(state_bytes + 3 * row_bytes, 3 * row_bytes, 4 * requests * rows * heads * dim * dim)


def lightning_commit(requests: int, layers: int, sizes: Sizes) -> Floor:
    """The commit of ``layers``. Bytes are those of the states alone, read and written, as in a decode step."""
    heads, dim = sizes.query_heads, sizes.head_dim
    state_bytes = layers * requests * heads * dim * dim * STATE_BYTES
    return Floor(state_bytes, state_bytes, 2 * layers * requests * heads * dim * dim)
