"""Cases of the sparse layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from sala_kernels.compress_keys import compress_keys
from sala_kernels.layout import COARSE_FACTOR, PagedBatch
from sala_kernels.select_blocks import select_blocks
from sala_kernels.sparse_attention import sparse_attention

from benchmarks.operators.harness import floors
from benchmarks.operators.harness.case import Case, Choice, Target, Work
from benchmarks.operators.harness.checks import check_attention, check_rows, check_selection
from benchmarks.operators.harness.inputs import Setting, block_lists
from benchmarks.operators.harness.peers import flashinfer_dense
from benchmarks.operators.harness.sizes import Sizes
from benchmarks.operators.harness.timing import Call

SHARED_PICKS = 0.8  # of a row's free picks are those of the row before


def cases(sizes: Sizes) -> list[Case]:
    chunk, (context, longest), mixed = sizes.chunk_tokens, sizes.contexts, sizes.mixed_lengths
    step, many = f"{len(mixed)} of {min(mixed)} to {max(mixed)}", [chunk] * len(mixed)
    select = partial(Case, "select_blocks", operators=("select_blocks",), captured=False)
    attend = partial(Case, "sparse_attention", operators=("sparse_attention",), captured=False)
    both = partial(
        Case, "select_blocks + sparse_attention", operators=("select_blocks", "sparse_attention"), captured=True
    )
    compress = partial(Case, "compress_keys", operators=("compress_keys",))
    prefill = f"prefill {chunk} of"
    rate = partial(Target, unit="TFLOP/s")
    shares = {"80 % shared picks": SHARED_PICKS, "independent picks": None}
    tails = [
        attend(f"prefill {tail} of {context}, {picks}", build=partial(attend_prefill, context, tail, share))
        for tail in sizes.tails
        for picks, share in shares.items()
    ]
    return [
        select(f"{prefill} {context}", build=partial(select_prefill, context), targets=(rate(300),)),
        select(f"{prefill} {longest}", build=partial(select_prefill, longest), targets=(rate(300),)),
        attend(
            f"{prefill} {context}, 80 % shared picks",
            build=partial(attend_prefill, context, chunk, SHARED_PICKS),
            targets=(rate(300),),
        ),
        attend(
            f"{prefill} {context}, independent picks",
            build=partial(attend_prefill, context, chunk, None),
            targets=(rate(150),),
        ),
        attend(f"{prefill} {longest}, 80 % shared picks", build=partial(attend_prefill, longest, chunk, SHARED_PICKS)),
        attend(f"{prefill} {longest}, independent picks", build=partial(attend_prefill, longest, chunk, None)),
        *tails,
        attend(f"{prefill} {chunk}, dense", build=attend_dense, peers=("flashinfer",)),
        both(f"decode 1 of {longest}", build=partial(decode, [longest]), targets=(Target(45, "us"),)),
        both(f"decode 1 of {chunk}", build=partial(decode, [chunk])),
        both(f"decode {len(many)} of {chunk}", build=partial(decode, many)),
        both(f"decode {step}", build=partial(decode, mixed), targets=(Target(70, "% of copy"),)),
        compress(f"prefill {chunk}", captured=False, build=compress_chunk, targets=(Target(30, "us"),)),
        compress(
            f"decode {len(mixed)}, all windows end", captured=True, build=compress_step, targets=(Target(5, "us"),)
        ),
    ]


def select_prefill(context: int, setting: Setting) -> Work:
    """A chunk at the end of a prompt of ``context`` tokens."""
    sizes = setting.sizes
    batch, pages = setting.paged([context], [sizes.chunk_tokens])
    floor = floors.select_blocks([(context, sizes.chunk_tokens)], sizes)
    compressed = setting.compressed_pool(pages)
    queries = [setting.queries(sizes.chunk_tokens) for _ in range(setting.sets(floor.read_bytes))]

    def calls(choice: Choice) -> list[Call]:
        arguments = compressed, batch, sizes.geometry, sizes.scale
        return [partial(select_blocks, q, *arguments, implementation=choice("select_blocks")) for q in queries]

    def check(choice: Choice) -> None:
        check_selection(calls(choice)[0](), queries[0], compressed, batch, sizes)

    return Work(floor, calls, check)


def attend_prefill(context: int, rows: int, share: float | None, setting: Setting) -> Work:
    """``rows`` at the end of a prompt of ``context`` tokens; ``share`` as in block_lists."""
    sizes = setting.sizes
    batch, pages = setting.paged([context], [rows])
    positions = torch.arange(context - rows, context, device=setting.device)
    queries = _queries(setting, rows)
    lists = [block_lists(positions, sizes.kv_heads, sizes.geometry, share) for _ in queries]
    distinct = sum(len(lists[0][:, kv_head].unique()) for kv_head in range(sizes.kv_heads))
    floor = floors.sparse_attention(positions.tolist(), distinct * sizes.geometry.block_size, sizes)
    return _attend(sizes, batch, queries, (setting.kv_pool(pages), setting.kv_pool(pages)), lists, floor)


def attend_dense(setting: Setting) -> Work:
    """A whole prompt as long as a chunk, whose rows attend to everything."""
    sizes, rows = setting.sizes, setting.sizes.chunk_tokens
    batch, pages = setting.paged([rows], [rows], sparse=False)
    queries, pools = _queries(setting, rows), (setting.kv_pool(pages), setting.kv_pool(pages))
    shape = rows, sizes.kv_heads, sizes.geometry.selected_blocks
    lists = [torch.full(shape, -1, dtype=torch.int32, device=setting.device)] * len(queries)
    work = _attend(sizes, batch, queries, pools, lists, floors.dense_attention(rows, sizes))

    def peer() -> list[Call]:
        calls = flashinfer_dense(queries, *pools, batch, sizes)
        check_attention(calls[0](), queries[0], *pools, lists[0], batch, sizes)
        return calls

    return replace(work, peers={"flashinfer": peer})


def _queries(setting: Setting, rows: int) -> list[torch.Tensor]:
    """Queries of a step, as many sets of them as the cache needs."""
    sets = setting.sets(floors.row_wise(rows, setting.sizes.width, read=1, written=0).read_bytes)
    return [setting.queries(rows) for _ in range(sets)]


def _attend(
    sizes: Sizes,
    batch: PagedBatch,
    queries: list[torch.Tensor],
    pools: tuple[torch.Tensor, torch.Tensor],
    lists: list[torch.Tensor],
    floor: floors.Floor,
) -> Work:
    """sparse_attention of the queries, each with its block list, over keys and values."""

    def calls(choice: Choice) -> list[Call]:
        keys, values = pools
        rest = batch, sizes.geometry, sizes.scale
        pairs = zip(queries, lists, strict=True)
        name = choice("sparse_attention")
        return [partial(sparse_attention, q, keys, values, ids, *rest, implementation=name) for q, ids in pairs]

    def check(choice: Choice) -> None:
        check_attention(calls(choice)[0](), queries[0], *pools, lists[0], batch, sizes)

    return Work(floor, calls, check)


@dataclass(frozen=True)
class Step:
    """Inputs of a decode step of one layer."""

    batch: PagedBatch
    queries: torch.Tensor
    compressed: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor

    def select(self, sizes: Sizes, choice: Choice) -> torch.Tensor:
        arguments = self.queries, self.compressed, self.batch, sizes.geometry, sizes.scale
        return select_blocks(*arguments, implementation=choice("select_blocks"))

    def attend(self, blocks: torch.Tensor, sizes: Sizes, choice: Choice) -> torch.Tensor:
        arguments = self.queries, self.keys, self.values, blocks, self.batch, sizes.geometry, sizes.scale
        return sparse_attention(*arguments, implementation=choice("sparse_attention"))

    def run(self, sizes: Sizes, choice: Choice) -> torch.Tensor:
        return self.attend(self.select(sizes, choice), sizes, choice)


def decode(lengths: Sequence[int], setting: Setting) -> Work:
    """One row each of requests of ``lengths`` tokens, all sparse: selection, then attention to what it chose."""
    sizes = setting.sizes
    floor = floors.select_blocks([(length, 1) for length in lengths], sizes)
    floor += floors.sparse_attention_step(lengths, sizes)
    steps = [_step(lengths, setting) for _ in range(setting.sets(floor.read_bytes))]

    def calls(choice: Choice) -> list[Call]:
        return [partial(step.run, sizes, choice) for step in steps]

    def check(choice: Choice) -> None:
        step = steps[0]
        blocks = step.select(sizes, choice)
        check_selection(blocks, step.queries, step.compressed, step.batch, sizes)
        output = step.attend(blocks, sizes, choice)
        check_attention(output, step.queries, step.keys, step.values, blocks, step.batch, sizes)

    return Work(floor, calls, check)


def _step(lengths: Sequence[int], setting: Setting) -> Step:
    batch, pages = setting.paged(lengths, [1] * len(lengths))
    batch = replace(batch, max_kv_tokens=max(setting.sizes.contexts))  # a captured step serves any length
    pools = setting.compressed_pool(pages), setting.kv_pool(pages), setting.kv_pool(pages)
    return Step(batch, setting.queries(len(lengths)), *pools)


def compress_chunk(setting: Setting) -> Work:
    """A chunk of one request; the input sets are the chunks of one long prompt, one after the other."""
    chunk = setting.sizes.chunk_tokens
    request = [(2 * chunk, chunk)]  # every chunk but the first has windows that begin before it
    sets = setting.sets(floors.compress_keys(request, setting.sizes).read_bytes)
    batch, pages = setting.paged([(sets + 1) * chunk], [chunk])
    batches = [replace(batch, kv_lens=batch.kv_lens.new_tensor([(i + 2) * chunk])) for i in range(sets)]
    return _compress(setting, request, batches, pages)


def compress_step(setting: Setting) -> Work:
    """A decode step in which a K1 and a K2 window of every request ends, the most a step can have to do."""
    sizes = setting.sizes
    requests, window = len(sizes.mixed_lengths), COARSE_FACTOR * sizes.geometry.kernel_size
    step = [(window, 1)] * requests
    sets = setting.sets(floors.compress_keys(step, sizes).read_bytes)
    batch, pages = setting.paged([sets * window] * requests, [1] * requests)
    batches = [replace(batch, kv_lens=torch.full_like(batch.kv_lens, (i + 1) * window)) for i in range(sets)]
    return _compress(setting, step, batches, pages)


def _compress(setting: Setting, requests: floors.Requests, batches: list[PagedBatch], pages: int) -> Work:
    sizes = setting.sizes
    keys, compressed = setting.kv_pool(pages), setting.compressed_pool(pages)

    def calls(choice: Choice) -> list[Call]:
        name = choice("compress_keys")
        return [partial(compress_keys, keys, compressed, b, sizes.geometry, implementation=name) for b in batches]

    def check(choice: Choice) -> None:
        # Rows that are not written must keep what they hold.
        outputs = [compressed.clone() for _ in range(2)]
        for output, name in zip(outputs, (choice("compress_keys"), "reference"), strict=True):
            compress_keys(keys, output, batches[0], sizes.geometry, implementation=name)
        check_rows("compress_keys", *(output.flatten(0, 2) for output in outputs))

    return Work(floors.compress_keys(requests, sizes), calls, check)
