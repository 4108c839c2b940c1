"""InfLLM-V2 block-sparse attention (arXiv 2509.24663), straight from the definition."""

from collections.abc import Iterator

import torch
from sala_kernels.layout import SparseGeometry

from sala_sglang.hf import flex

# Query times key positions whose scores are held at a time: those of a CPU's cache, or about 1 GB of a GPU.
CHUNK_SCORES = {"cpu": 1 << 22, "cuda": 1 << 25}


def block_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    geometry: SparseGeometry,
) -> torch.Tensor:
    """Attention of the last T tokens of B sequences of L tokens, each to the whole of its own.

    queries: [B, T, Hq, D], heads of one group adjacent; keys, values: [B, L, Hkv, D]. Dense causal attention while
    L < ``geometry.dense_len``, else over the selected blocks. Returns [B, T, Hq, D] in the dtype of the queries.
    """
    if keys.shape[1] < geometry.dense_len:
        return dense_attention(queries, keys, values)
    sequences = zip(queries, keys, values, strict=True)
    return torch.stack([sparse_attention(*sequence, geometry) for sequence in sequences])


def dense_attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Causal attention of the last T of L tokens: [B, T, Hq, D], [B, L, Hkv, D] twice -> [B, T, Hq, D]."""
    tokens, length = queries.shape[1], keys.shape[1]
    if tokens == length:
        return _softmax_attention(queries, keys, values, causal=True)
    token = torch.arange(length, device=queries.device)
    outputs, end = [], length - tokens
    for part in queries.split(_rows_at_a_time(queries, length), dim=1):
        begin, end = end, end + part.shape[1]
        allowed = token[:end] <= token[begin:end, None]
        outputs.append(_softmax_attention(part, keys[:, :end], values[:, :end], allowed))
    return torch.cat(outputs, dim=1)


def sparse_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    geometry: SparseGeometry,
) -> torch.Tensor:
    """Attention of the last T tokens of one sequence to their selected blocks: [T, Hq, D], [L, Hkv, D] twice."""
    length = len(keys)
    fine = compress(keys, geometry.kernel_size, geometry.kernel_stride)
    coarse = compress(keys, 4 * geometry.kernel_size, 4 * geometry.kernel_stride)
    parts = _selected(queries, fine, coarse, length, geometry)
    if flex.serves(queries):
        chosen = torch.cat([part for _, _, part in parts])
        return flex.attend(queries, keys, values, chosen, geometry.block_size)
    token = torch.arange(length, device=queries.device)
    outputs, first = [], length - len(queries)
    for begin, end, chosen in parts:
        allowed = chosen.repeat_interleave(geometry.block_size, dim=-1)[..., :end]
        allowed = (allowed & (token[:end] <= token[begin:end, None])[:, None]).transpose(0, 1)
        allowed = allowed.repeat_interleave(queries.shape[1] // keys.shape[1], dim=0)
        part = queries[None, begin - first : end - first]
        outputs.append(_softmax_attention(part, keys[None, :end], values[None, :end], allowed)[0])
    return torch.cat(outputs)


def _selected(
    queries: torch.Tensor, fine: torch.Tensor, coarse: torch.Tensor, length: int, geometry: SparseGeometry
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Parts of the last T of ``length`` tokens: the positions they begin and end at, and their blocks."""
    end = length - len(queries)
    for part in queries.split(_rows_at_a_time(queries, length)):
        begin, end = end, end + len(part)
        positions = torch.arange(begin, end, device=queries.device)
        yield begin, end, select_blocks(part, fine, coarse, positions, length, geometry)


def _rows_at_a_time(queries: torch.Tensor, length: int) -> int:
    return max(1, CHUNK_SCORES.get(queries.device.type, CHUNK_SCORES["cpu"]) // length)


def compress(keys: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """Mean of every full window: keys [L, Hkv, D] -> [n, Hkv, D]; window j covers tokens j·stride … j·stride+size−1."""
    if len(keys) < size:
        return keys[:0]
    return keys.to(_work(keys)).unfold(0, size, stride).mean(-1).to(keys.dtype)


@torch.no_grad()
def select_blocks(
    queries: torch.Tensor,
    fine: torch.Tensor,
    coarse: torch.Tensor,
    positions: torch.Tensor,
    length: int,
    geometry: SparseGeometry,
) -> torch.Tensor:
    """Blocks of each query and KV head: queries [T, Hq, D] at ``positions`` [T] -> [T, Hkv, NB] bool.

    fine, coarse: compressed keys [n, Hkv, D] of the sequence of ``length`` tokens.
    """
    blocks = torch.arange(-(-length // geometry.block_size), device=queries.device)
    current = (positions // geometry.block_size)[:, None, None]
    forced = (blocks < geometry.init_blocks) | (blocks >= current - geometry.local_blocks)
    scores = _block_scores(_window_weights(queries, fine, coarse, positions, geometry), len(blocks), geometry)
    scores = scores.masked_fill(forced, torch.inf).masked_fill(blocks > current, -torch.inf)
    # A stable sort gives ties to the lowest block.
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., : geometry.selected_blocks]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True) & (blocks <= current)


def _window_weights(
    queries: torch.Tensor,
    fine: torch.Tensor,
    coarse: torch.Tensor,
    positions: torch.Tensor,
    geometry: SparseGeometry,
) -> torch.Tensor:
    """P of every fine window, [T, Hkv, n]: 0 where it ends after the query or no coarse window ends before it."""
    work = _work(queries)
    grouped = queries.to(work).unflatten(1, (fine.shape[1], -1))
    scale = queries.shape[-1] ** -0.5
    fine_logits = scale * torch.einsum("tkgd,nkd->tkgn", grouped, fine.to(work))
    coarse_logits = scale * torch.einsum("tkgd,nkd->tkgn", grouped, coarse.to(work))
    fine_hidden = _hidden(fine, positions, geometry.kernel_size, geometry.kernel_stride)
    coarse_hidden = _hidden(coarse, positions, 4 * geometry.kernel_size, 4 * geometry.kernel_stride)

    # The normaliser comes from the coarse windows, so the weights of the fine ones need not sum to 1.
    normaliser = coarse_logits.masked_fill(coarse_hidden, -torch.inf).logsumexp(-1, keepdim=True)
    weights = (fine_logits - normaliser).exp().masked_fill(fine_hidden | normaliser.isneginf(), 0)
    return weights.sum(2).to(queries.dtype)


def _hidden(windows: torch.Tensor, positions: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """[T, 1, 1, n] bool: windows that do not lie wholly at or before the query."""
    last = torch.arange(len(windows), device=positions.device) * stride + size - 1
    return (last > positions[:, None])[:, None, None]


def _block_scores(weights: torch.Tensor, blocks: int, geometry: SparseGeometry) -> torch.Tensor:
    """Largest weight among the windows that overlap each block: [T, Hkv, n] -> [T, Hkv, blocks]."""
    per_block = geometry.block_size // geometry.kernel_stride
    before = geometry.kernel_size // geometry.kernel_stride - 1
    after = blocks * per_block - weights.shape[-1]
    padded = torch.nn.functional.pad(weights, (before, after), value=-torch.inf)
    return padded.unfold(-1, per_block + before, per_block).amax(-1)


def _softmax_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    allowed: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """queries [B, T, Hq, D], keys/values [B, L, Hkv, D], allowed [(Hq,) T, L] bool or ``causal`` -> [B, T, Hq, D]."""
    group = queries.shape[2] // keys.shape[2]
    if queries.is_cuda and queries.dtype.itemsize == 2:  # its kernels sum in float32
        q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, is_causal=causal, enable_gqa=group > 1
        ).transpose(1, 2)
    # Heads are repeated here: the attention of torch that takes groups keeps the whole score matrix for some dtypes.
    keys, values = (x.repeat_interleave(group, dim=2) for x in (keys, values))
    q, k, v = (x.to(_work(queries)).transpose(1, 2) for x in (queries, keys, values))
    output = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal)
    return output.transpose(1, 2).to(queries.dtype)


def _work(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
