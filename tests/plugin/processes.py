"""Registration cannot be undone, so each case has a process of its own."""

import json
import os
import subprocess

from testing import fork_server
from testing.server import START_SECONDS

RESOLVE = """
import json, logging, os, sys
from sglang.srt.plugins import load_plugins
load_plugins()
load_plugins()
from sglang.srt.server_args import prepare_server_args
from sglang.srt.arg_groups.overrides import model_config_of, resolution_result

class Warnings(logging.Handler):
    def emit(self, record):
        warnings.append(record.getMessage())

logging.getLogger("sala_sglang.plugin.server_arguments").addHandler(Warnings(logging.WARNING))
result = []
for argv in json.loads(sys.argv[1]):
    warnings = []
    try:
        args = prepare_server_args(argv)
        args.resolve_once()
        fields = ("attention_backend", "page_size", "disable_radix_cache", "mamba_radix_cache_strategy")
        fields += ("tool_call_parser", "reasoning_parser")
        found = {field: resolution_result(args, field) for field in fields}
        config = model_config_of(args).hf_config
        found["config"] = type(config).__module__
        found["longest_prefill_graph"] = max(resolution_result(args, "cuda_graph_config").prefill.bs)
        found["warnings"] = [text for text in warnings if "has no effect" in text]
        found["dense_as_sparse"] = os.environ.get("SGLANG_MINICPM_DENSE_AS_SPARSE")
    except Exception as error:
        found = {"error": str(error)}
    result.append(found)
print("RESULT" + json.dumps(result))
"""


def run_python(code: str, *args: str, **environment: str) -> subprocess.CompletedProcess:
    return fork_server.run_to_end(["-c", code, *args], {**os.environ, **environment}, START_SECONDS)


def resolve(commands: list[str], **environment: str) -> list[dict]:
    """What SGLang makes of each command line, or the error."""
    arguments = json.dumps([command.split() for command in commands])
    done = run_python(RESOLVE, arguments, **environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr
    return json.loads(lines[0].removeprefix("RESULT"))
