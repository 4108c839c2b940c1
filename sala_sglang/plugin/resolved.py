"""What a server would make of its arguments, without starting one: what is refused, what is chosen in their place."""

import logging
from collections.abc import Iterator
from typing import Any

from sala_sglang.config import SALAConfig
from sala_sglang.plugin.argument_table import without_effect

UNSET = "not given"
UNSAID = {"random_seed", "uses_mamba_radix_cache"}  # drawn at random; no argument but a note of SGLang's
KIB, MIB = 2**10, 2**20


def report(arguments: list[str]) -> int:
    """Print what ``python -m sglang.launch_server`` with ``arguments`` would serve; 0, or 1 where it would not start.

    Impossible words end the process with code 2, as they do for the server.
    """
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    logging.disable(logging.INFO)
    load_plugins()
    server_args = prepare_server_args(arguments)
    given = _values(server_args)
    try:
        server_args.resolve_once()
    except (ValueError, OSError) as error:  # OSError: there is no such model
        print(f"A server would not start: {error}")
        return 1
    lines = list(_chosen(given, _values(server_args)))
    width = max((len(name) for name, _ in lines), default=0)
    for name, change in lines:
        print(f"{name:<{width}}  {change}")
    for text in _speculation(server_args):
        print(text)
    print("A server would start.")
    return 0


def _values(server_args: Any) -> dict[str, Any]:
    """All arguments as they are now."""
    from sglang.srt.arg_groups.arg_utils import field_names
    from sglang.srt.arg_groups.overrides import resolution_result

    return {name: resolution_result(server_args, name) for name in field_names(type(server_args))}


def _chosen(given: dict[str, Any], taken: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(argument, what was given and what is taken) where these differ.

    Without arguments that cannot touch the model, names that are the model's path, and what is drawn at random.
    """
    for name in sorted(given.keys() - without_effect().keys() - UNSAID):
        before, now = given[name], taken[name]
        shown = isinstance(now, (str, int, float)) and now not in (before, given["model_path"])
        if shown and not name.startswith("_"):
            yield f"--{name.replace('_', '-')}", f"{UNSET if before is None else before} -> {now}"


def _speculation(server_args: Any) -> Iterator[str]:
    """Who drafts, and what the rows of a verify step keep in memory."""
    from sglang.srt.arg_groups.overrides import model_config_of, resolution_result

    from sala_sglang.plugin import draft_model
    from sala_sglang.plugin.speculation import row_bytes

    algorithm = resolution_result(server_args, "speculative_algorithm")
    model = model_config_of(server_args)
    if algorithm is None or not isinstance(model.hf_config, SALAConfig):
        return
    rows = resolution_result(server_args, "speculative_num_draft_tokens")
    requests = resolution_result(server_args, "max_running_requests")
    size = row_bytes(model.hf_config, model.dtype, resolution_result(server_args, "tp_size"))
    source = "prompt lookup in the request's own tokens"
    if algorithm in draft_model.ALGORITHMS:
        source = f"{resolution_result(server_args, 'speculative_draft_model_path')}, in every step"
    yield f"drafts: {source}"
    yield f"a step that verifies them: up to {rows} rows per request, its last token and {rows - 1} drafts"
    total = f"{rows * requests * size / MIB:.0f} MiB for {requests} requests"
    yield f"memory of their keys and values: {size / KIB:.0f} KiB per row and GPU, {total}"
