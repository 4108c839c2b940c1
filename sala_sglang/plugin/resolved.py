"""What a server would make of its arguments, without starting one: what is refused, what is chosen in their place."""

import logging
from collections.abc import Iterator
from typing import Any

from sala_sglang.config import SALAConfig
from sala_sglang.plugin.argument_table import without_effect

PLUGIN = "sala-sglang"
UNSET = "not given"
OWN_SOURCES = "sala_sglang.", "model_overrides"  # the second are what this package registered for its model
UNSAID = {"random_seed", "uses_mamba_radix_cache"}  # drawn at random; no argument but a note of SGLang's
KIB, MIB = 2**10, 2**20


def report(arguments: list[str]) -> int:
    """Print what ``python -m sglang.launch_server`` with ``arguments`` would serve; 0, or 1 where it is refused.

    ValueError from SGLang or this plugin is printed as the reason. Impossible words end the process with code 2, as
    they do for the server.
    """
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    logging.disable(logging.INFO)
    load_plugins()
    server_args = prepare_server_args(arguments)
    try:
        server_args.resolve_once()
    except ValueError as error:
        print(f"A server would not start: {error}")
        return 1
    lines = list(_chosen(server_args))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)] if lines else []
    for line in lines:
        print("  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip())
    for text in _speculation(server_args):
        print(text)
    print("A server would start.")
    return 0


def _chosen(server_args: Any) -> Iterator[tuple[str, str, str]]:
    """(argument, what was given and what is taken, who chose) where these differ, in the order of the choices.

    Without arguments that cannot touch the model, names that are the model's path, and what is drawn at random.
    """
    from sglang.srt.arg_groups.overrides import resolution_result

    given: dict[str, Any] = server_args._raw_input
    by: dict[str, str] = {}
    for source, declared in server_args._resolved_overrides:
        by |= dict.fromkeys(declared, PLUGIN if source.startswith(OWN_SOURCES) else "SGLang")
    for name in without_effect().keys() | UNSAID:
        by.pop(name, None)
    for name, source in by.items():
        taken = resolution_result(server_args, name)
        same = taken in (given[name], given["model_path"])
        if name.startswith("_") or not isinstance(taken, (str, int, float)) or same:
            continue
        before = UNSET if given[name] is None else str(given[name])
        yield f"--{name.replace('_', '-')}", f"{before} -> {taken}", source


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
