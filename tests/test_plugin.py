"""Registration with SGLang, in a process of its own per case, since it cannot be undone."""

import json
import os
import subprocess
import sys

import pytest

PUBLISHED = (
    "--trust-remote-code --disable-radix-cache {backend} --chunked-prefill-size 8192 --max-running-requests 32 "
    "--skip-server-warmup --port 31111 --dense-as-sparse"
)
# Arguments and what is allowed instead.
REFUSED = {
    "--attention-backend triton": "'sala'",
    "--page-size 16": "64",
    "--pp-size 2": "1",
    "--tp-size 3": "1, 2, 4 (",
    "--attn-cp-size 2 --tp-size 2": "1",
    "--dcp-size 2 --tp-size 2": "1",
    "--kv-cache-dtype fp8_e4m3": "'auto', 'bfloat16', 'bf16'",
    "--kv-cache-dtype bf16 --dtype float32": "'auto'",
    "--disaggregation-mode decode": "'null'",
    "--hicache-mem-layout layer_first --enable-hierarchical-cache": "'page_first', 'page_first_direct'",
    "--hicache-io-backend kernel --enable-hierarchical-cache": "'direct'",  # on a CPU
    "--hicache-storage-backend file --enable-hierarchical-cache --hicache-io-backend direct": "None",
}
RESOLVE = """
import json, os, sys
from sglang.srt.plugins import load_plugins
load_plugins()
load_plugins()
from sglang.srt.server_args import prepare_server_args
from sglang.srt.arg_groups.overrides import model_config_of, resolution_result
result = []
for argv in json.loads(sys.argv[1]):
    try:
        args = prepare_server_args(argv)
        args.resolve_once()
        fields = ("attention_backend", "page_size", "disable_radix_cache", "mamba_radix_cache_strategy")
        found = {field: resolution_result(args, field) for field in fields}
        config = model_config_of(args).hf_config
        found["config"] = type(config).__module__
        found["longest_prefill_graph"] = max(resolution_result(args, "cuda_graph_config").prefill.bs)
        found["dense_as_sparse"] = os.environ.get("SGLANG_MINICPM_DENSE_AS_SPARSE")
    except Exception as error:
        found = {"error": str(error)}
    result.append(found)
print("RESULT" + json.dumps(result))
"""


def run_python(code: str, *args: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        check=False,
    )


def resolve(commands: list[str], **environment: str) -> list[dict]:
    """What SGLang makes of each command line, or the error."""
    arguments = json.dumps([command.split() for command in commands])
    done = run_python(RESOLVE, arguments, **environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr
    return json.loads(lines[0].removeprefix("RESULT"))


@pytest.fixture(scope="module")
def served(tiny_checkpoint) -> str:
    return f"--model {tiny_checkpoint} --device cpu"


def test_published_lines_and_defaults_reach_our_backend(served):
    plain, *published = resolve(
        [served] + [f"{served} {PUBLISHED.format(backend=b)}" for b in ("--attention-backend minicpm_flashinfer", "")]
    )
    for found in (plain, *published):
        assert found["attention_backend"] == "sala"
        assert found["page_size"] == 64
        assert found["config"] == "sala_sglang.config"
    assert plain["mamba_radix_cache_strategy"] == "extra_buffer" and plain["dense_as_sparse"] is None
    for found in published:
        assert found["disable_radix_cache"] is True and found["dense_as_sparse"] == "1"


@pytest.fixture(scope="module")
def refusals(served) -> dict[str, str]:
    results = resolve([f"{served} {arguments}" for arguments in REFUSED])
    return {arguments: found.get("error", "no error") for arguments, found in zip(REFUSED, results, strict=True)}


@pytest.mark.parametrize("arguments", REFUSED)
def test_arguments_that_cannot_be_served_are_refused(refusals, arguments):
    field, value = arguments.split()[:2]
    error = refusals[arguments]
    assert field[2:].replace("-", "_") in error and value in error and f"allowed: {REFUSED[arguments]}" in error


def test_prefill_graphs_are_short_unless_the_user_names_a_size(served):
    plain, named = resolve([served, f"{served} --cuda-graph-max-bs-prefill 1024"])
    assert (plain["longest_prefill_graph"], named["longest_prefill_graph"]) == (512, 1024)


def test_switch_leaves_sglang_alone(served):
    (found,) = resolve([served], SALA_DISABLE="1")
    assert found["config"] == "sglang.srt.configs.minicpm"
    assert found["attention_backend"] != "sala"


def test_contradicting_switches_are_refused(served):
    (found,) = resolve([f"{served} --dense-as-sparse"], SGLANG_MINICPM_FORCE_DENSE="1")
    assert "SGLANG_MINICPM_DENSE_AS_SPARSE and SGLANG_MINICPM_FORCE_DENSE" in found["error"]


def test_failed_registration_ends_the_process_with_the_reason():
    code = (
        "import sala_sglang.plugin as plugin\n"
        "def broken(*args, **kwargs): raise AttributeError('no such registry')\n"
        "plugin._register_model_package = broken\n"
        "from sglang.srt.plugins import load_plugins\n"
        "load_plugins()\n"
        "print('went on')\n"
    )
    done = run_python(code)
    assert done.returncode != 0 and "went on" not in done.stdout
    assert "no such registry" in done.stderr and "SALA_DISABLE=1" in done.stderr


def test_hook_that_sglang_cannot_apply_is_an_error():
    code = (
        "import sala_sglang.plugin as plugin\n"
        "from sglang.srt.plugins.hook_registry import HookRegistry, HookType\n"
        "plugin._hook('sglang.srt.server_args.ServerArgs.no_such_method', print, HookType.AFTER)\n"
        "HookRegistry.apply_hooks()\n"
        "plugin._check_hooks()\n"
    )
    assert "SGLang has no sglang.srt.server_args.ServerArgs.no_such_method" in run_python(code).stderr


def test_untested_sglang_version_is_named():
    code = (
        "import importlib.metadata, logging\n"
        "logging.basicConfig()\n"
        "import sala_sglang.plugin as plugin\n"
        "importlib.metadata.version = lambda name: '9.9.9'\n"
        "plugin._warn_of_untested_version()\n"
    )
    error = run_python(code).stderr
    assert "9.9.9" in error and "0.5.23" in error
