"""Arguments of a server: which are refused, and what the others become."""

import json
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.arg_groups import overrides

from sala_sglang.plugin import server_arguments
from sala_sglang.plugin.server_arguments import MAX_PREFILL_GRAPH_TOKENS, prefill_graph_default
from tests.plugin.processes import resolve

PUBLISHED = (
    "--trust-remote-code --disable-radix-cache {backend} --chunked-prefill-size 8192 --max-running-requests 32 "
    "--skip-server-warmup --port 31111 --dense-as-sparse"
)
# Arguments and what is allowed instead.
REFUSED = {
    "--attention-backend triton": "'sala'",
    "--page-size 16": "64",
    "--pp-size 7": "1 to 6, the layers",
    "--pp-size 6 --enable-hierarchical-cache --hicache-io-backend direct --hicache-mem-layout page_first_direct": (
        "a SGLANG_PP_LAYER_PARTITION with layers of both kinds on every stage"
    ),
    "--enable-dynamic-chunking --pp-size 2": "False",
    "--tp-size 3": "1, 2, 4 (",
    "--attn-cp-size 2 --tp-size 2": "1",
    "--dcp-size 2 --tp-size 2": "1",
    "--kv-cache-dtype fp8_e5m2": "'auto', 'bfloat16', 'bf16', 'fp8_e4m3'",
    "--kv-cache-dtype mxfp8": "'auto', 'bfloat16', 'bf16', 'fp8_e4m3'",
    "--kv-cache-dtype nvfp4": "'auto', 'bfloat16', 'bf16', 'fp8_e4m3'",
    "--kv-cache-dtype bf16 --dtype float32": "'auto', 'fp8_e4m3'",
    "--quantization-param-path scales.json --kv-cache-dtype fp8_e4m3": "None",
    "--disaggregation-transfer-backend nixl --disaggregation-mode prefill": "'mooncake', 'mooncake_tcp'",
    "--disaggregation-transfer-backend fake --disaggregation-mode decode": "'mooncake', 'mooncake_tcp'",
    "--pp-size 2 --disaggregation-mode prefill": "1",
    "--pp-size 2 --disaggregation-mode decode": "1",
    "--dp-size 2 --disaggregation-mode prefill": "1",
    "--speculative-algorithm NGRAM --disaggregation-mode decode": "None",
    "--enable-lora --max-lora-rank 8 --lora-target-modules all --disaggregation-mode prefill": "None, False",
    "--enable-hierarchical-cache --hicache-io-backend direct --disaggregation-mode decode": "False",
    "--enable-pd-role-switch --disaggregation-mode decode": "False",
    "--disaggregation-decode-allocation-policy prefill_complete --disaggregation-mode prefill": "'early'",
    "--disaggregation-decode-host-receive-threshold 0.5 --disaggregation-mode decode": "1",
    "--disaggregation-decode-retraction-backup host_pool --disaggregation-mode decode": "None, 'cpu_tensor', 'none'",
    "--disaggregation-decode-enable-offload-kvcache --disaggregation-mode decode": "False",
    "--hicache-mem-layout layer_first --enable-hierarchical-cache": "'page_first', 'page_first_direct'",
    "--hicache-io-backend kernel --enable-hierarchical-cache": "'direct'",  # on a CPU
    "--hicache-storage-backend file": "None",
    "--hicache-storage-backend nixl --enable-hierarchical-cache --hicache-io-backend direct": "None, 'file'",
    "--nccl-port 5000 --dp-size 2": "None",
    "--enable-lmcache": "False",
    "--enable-hisparse": "False",
    "--enable-streaming-session": "False",
    "--mamba-ssm-dtype bfloat16": "None, 'float32'",
    "--mamba-radix-cache-strategy no_buffer --disable-overlap-schedule": "'auto', 'extra_buffer'",
    "--linear-attn-backend flashinfer": "'triton'",
    "--quantization w8a8_int8": "None",
    "--quantization nvfp4_online": "None",
    "--quantization modelopt_fp4": "None",
    "--quantization humming": "None",
    "--quantization fp8": "None",  # on a CPU
    "--load-format layered": "'auto', 'safetensors', 'pt', 'npcache', 'instanttensor', 'fastsafetensors', 'runai_str",
    "--model-impl transformers": "'auto', 'sglang'",
    "--is-embedding": "False",
    "--enable-two-batch-overlap": "False",
    "--enable-pdmux --chunked-prefill-size -1 --disable-overlap-schedule": "False",
    "--enable-torch-compile": "False",
    "--enable-deterministic-inference": "False",
    "--cpu-offload-gb 4": "0",
    "--use-ray": "False",
    "--smg-grpc-mode": "False",
    "--kv-events-config {}": "None",
    '--json-model-override-args {"num_key_value_head":1}': "transformers_version, architectures",
}
# Values that the configuration of the model refuses, and what it allows instead.
REFUSED_CONFIGURATIONS = {
    '{"num_key_value_heads":3}': "num_key_value_heads = 3 is not possible; allowed: divisors of num_attention_heads",
    '{"sparse_config":{"topk":0}}': "sparse_config.topk = 0 is not possible; allowed: an integer of at least 1",
    '{"lightning_scale":"2/d"}': "lightning_scale = '2/d' is not possible; allowed: '1/sqrt(d)'",
    '{"head_dim":"wide"}': "expected int, got str",
}
SIZES = dict.fromkeys(("cuda_graph_max_bs_prefill", "cuda_graph_bs_prefill", "cuda_graph_config"))


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
    field, value = [*arguments.split(), "--"][:2]
    value = "True" if value.startswith("--") else value.strip("{}").split(":")[0].replace('"', "'")
    error = refusals[arguments]
    assert field[2:].replace("-", "_") in error and value in error and f"allowed: {REFUSED[arguments]}" in error


def test_prefill_graphs_are_short_unless_the_user_names_a_size(served):
    plain, named = resolve([served, f"{served} --cuda-graph-max-bs-prefill 1024"])
    assert (plain["longest_prefill_graph"], named["longest_prefill_graph"]) == (512, 1024)


def test_overridden_configurations_are_checked_again(served):
    found = resolve([f"{served} --json-model-override-args {given}" for given in REFUSED_CONFIGURATIONS])
    for result, expected in zip(found, REFUSED_CONFIGURATIONS.values(), strict=True):
        assert expected in result["error"]


def test_parsers_are_those_of_the_family_unless_the_user_names_others(served):
    named = f"{served} --tool-call-parser qwen3_coder --reasoning-parser deepseek-r1"
    found = resolve([served, f"{served} --tool-call-parser auto --reasoning-parser auto", named])
    parsers = [(one["tool_call_parser"], one["reasoning_parser"]) for one in found]
    assert parsers == [("minicpm5", "qwen3"), ("minicpm5", "qwen3"), ("qwen3_coder", "deepseek-r1")]


def test_graphs_that_cannot_be_captured_are_refused(served):
    refused = {"decode": "breakable", "prefill": "full"}
    configurations = [json.dumps({phase: {"backend": name}}, separators=(",", ":")) for phase, name in refused.items()]
    found = resolve([f"{served} --cuda-graph-config {given}" for given in configurations])
    for result, (phase, name) in zip(found, refused.items(), strict=True):
        assert f"cuda_graph_config[{phase}].backend = {name!r} is not supported" in result["error"]


def test_online_quantization_is_for_gpus():
    def allowed(device):
        return server_arguments._quantization_limit(device)[1]

    assert allowed("cpu") == (None,) and allowed("cuda") == (None, "fp8", "w8a8_fp8")


@pytest.mark.parametrize("capability, served", [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_fp8_is_for_gpus_that_convert_it(monkeypatch, capability, served):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    field, allowed, reason = server_arguments._cache_limit(torch.bfloat16, "cuda", "fp8_e4m3")
    assert (field, "fp8_e4m3" in allowed) == ("kv_cache_dtype", served)
    assert served or f"capability 8.9 and later, and this one has {capability[0]}.{capability[1]}" in reason
    monkeypatch.delattr(torch.cuda, "get_device_capability")  # nobody asks for it otherwise
    for device, asked in (("cpu", "fp8_e4m3"), ("cuda", "auto")):
        assert "fp8_e4m3" in server_arguments._cache_limit(torch.bfloat16, device, asked)[1]


def test_states_of_another_dtype_in_the_environment_are_refused(served):
    (found,) = resolve([served], SGLANG_MAMBA_SSM_DTYPE="bfloat16")
    assert "SGLANG_MAMBA_SSM_DTYPE = 'bfloat16' is not possible; allowed: float32" in found["error"]


def test_products_that_do_not_exist_are_refused(served):
    (found,) = resolve([served], SALA_OWN_PRODUCTS="rows,producers")
    assert "SALA_OWN_PRODUCTS = 'rows,producers' is not possible; allowed: 'rows'" in found["error"]


def test_paths_that_do_not_exist_are_refused(served):
    (found,) = resolve([served], SALA_PATHS="tma=on")
    assert "SALA_PATHS = 'tma=on' is not possible; allowed: NAME=on or NAME=off, separated by commas" in found["error"]


def test_arguments_without_effect_are_named(served):
    plain, given = resolve([served, f"{served} --moe-runner-backend triton --mm-io-worker-num 2"])
    assert plain["warnings"] == []
    assert given["warnings"] == [
        "MiniCPM-SALA: moe_runner_backend = 'triton' has no effect: it is for experts",
        "MiniCPM-SALA: mm_io_worker_num = 2 has no effect: it is for images and sound",
    ]


def test_contradicting_switches_are_refused(served):
    (found,) = resolve([f"{served} --dense-as-sparse"], SGLANG_MINICPM_FORCE_DENSE="1")
    assert "SGLANG_MINICPM_DENSE_AS_SPARSE and SGLANG_MINICPM_FORCE_DENSE" in found["error"]


@pytest.fixture
def plain_arguments(monkeypatch):
    monkeypatch.setattr(overrides, "resolution_result", getattr)


def test_short_steps_alone(plain_arguments):
    assert prefill_graph_default(SimpleNamespace(**SIZES)) == {"cuda_graph_max_bs_prefill": MAX_PREFILL_GRAPH_TOKENS}


@pytest.mark.parametrize(
    "given", [{"cuda_graph_max_bs_prefill": 64}, {"cuda_graph_bs_prefill": [8]}, {"cuda_graph_config": {"prefill": {}}}]
)
def test_what_was_asked_for_stays(plain_arguments, given):
    assert prefill_graph_default(SimpleNamespace(**SIZES | given)) == {}
