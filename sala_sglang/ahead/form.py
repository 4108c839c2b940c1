"""What of a server decides which kernels of this project it launches, and the tensors that its steps would have."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from sala_kernels.layout import PagedBatch, SparseGeometry

from sala_sglang.config import SALAConfig
from sala_sglang.models.merged_projections import merged_parts, merged_runs, qkvg_widths

PROJECTIONS = "self_attn.qkvg_proj"
HEAD_PADDING = 64  # rows to which SGLang pads the head's weight
# Columns that SGLang's table of token slots has beyond the context, and as many more as a verify step has rows.
SPARE_COLUMNS = 4


@dataclass(frozen=True)
class Form:
    """A server as its kernels see it.

    context_tokens, table_tokens: of the longest request, and of a row of SGLang's table of token slots; Triton compiles
    anew where 16 divides the latter.
    ranks: of tensor parallelism.
    fp8_cache: whether keys and values are in e4m3.
    verified_rows: per request in a verify step of speculation; 0 without it.
    schemes: how linear layers are quantised, by their released names; those with 16 bits are in none.
    float8_rows: whether prompts are multiplied in FP8, by rows that norms, gates and activations write so.
    """

    config: SALAConfig
    context_tokens: int
    table_tokens: int
    ranks: int = 1
    dtype: torch.dtype = torch.bfloat16
    fp8_cache: bool = False
    verified_rows: int = 0
    schemes: Mapping[str, Hashable] = field(default_factory=dict)
    float8_rows: bool = False

    @property
    def geometry(self) -> SparseGeometry:
        return self.config.sparse_geometry

    @property
    def kv_heads(self) -> int:
        return max(self.config.num_key_value_heads // self.ranks, 1)  # heads are copied where there are more ranks

    @property
    def query_heads(self) -> int:
        return self.config.num_attention_heads // self.ranks

    @property
    def selecting_heads(self) -> int:
        """Scores sum over all heads of a group, also where ranks share it."""
        return max(self.query_heads, self.config.num_attention_heads // self.config.num_key_value_heads)

    @property
    def lightning_heads(self) -> int:
        return self.config.lightning_nh // self.ranks

    def empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def projected(self, kind: str, rows: int) -> Iterator[list[torch.Tensor]]:
        """Query, key, value and gate [rows, width], in every way in which layers of ``kind`` have them in memory.

        Parts that are one product lie side by side.
        """
        parts = merged_parts(kind)[PROJECTIONS]
        widths = dict(zip(parts, qkvg_widths(self.config, kind, self.ranks), strict=True))
        for runs in self._layouts(kind):
            sizes = [[widths[part] // self.ranks for part in run] for run in runs]
            yield [part for run in sizes for part in self.empty(rows, sum(run)).split(run, dim=1)]

    def _layouts(self, kind: str) -> list[tuple[tuple[str, ...], ...]]:
        """The ways in which layers of ``kind`` divide their projections into products."""
        found = []
        for index, one in enumerate(self.config.layer_kinds):
            if one == kind:
                layer = f"model.layers.{index}"
                runs = merged_runs(kind, lambda part, layer=layer: self.schemes.get(f"{layer}.{part}"))  # type: ignore[misc]
                found.append(tuple(run for run in runs.values() if run[0] in merged_parts(kind)[PROJECTIONS]))
        return list(dict.fromkeys(found))

    def weight_shapes(self) -> list[tuple[int, int]]:
        """Outputs and inputs of the linear layers of a rank, merged ones as one, and of the head."""
        config, hidden = self.config, self.config.hidden_size
        shapes = {(-(-config.vocab_size // HEAD_PADDING) * HEAD_PADDING // self.ranks, hidden)}
        for kind in set(config.layer_kinds):
            shapes.add((sum(qkvg_widths(config, kind, self.ranks)) // self.ranks, hidden))
        width = config.num_attention_heads * config.head_dim
        for inputs in (width, config.lightning_nh * config.lightning_head_dim, config.intermediate_size):
            shapes.add((hidden, inputs // self.ranks))
        shapes.add((2 * config.intermediate_size // self.ranks, hidden))
        return sorted(shapes, reverse=True)


def unread_batch(rows: list[int], context: int, table_tokens: int) -> PagedBatch:
    """A batch of requests with ``rows`` each that end at ``context`` tokens. Their token slots are not set."""
    requests = len(rows)
    return PagedBatch(
        query_start=ints(0, *rows).cumsum(0).int(),
        kv_lens=ints(*[context] * requests),
        sparse_from=ints(*[0] * requests),
        request_rows=torch.arange(requests),
        token_slots=torch.empty(2, table_tokens, dtype=torch.int32),
        max_query_tokens=max(rows),
        max_kv_tokens=context,
    )


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def table_tokens(context_tokens: int, verified_rows: int) -> int:
    """Columns of SGLang's table of token slots for a context of so many tokens."""
    return context_tokens + SPARE_COLUMNS + verified_rows
