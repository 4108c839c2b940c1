"""Defaults of memory on small GPUs: the pages hold a request of the whole context; all others keep SGLang's."""

import json

import pytest

from sala_sglang.cards import plan
from sala_sglang.cards.memory import MIB, Load, memory_bytes, state_bytes, weight_bytes
from sala_sglang.config import ARCHITECTURE, SALAConfig
from sala_sglang.plugin.memory_defaults import POOLS, Given, memory_defaults
from tests.plugin.processes import run_python

CONFIG = SALAConfig()
RTX_5090 = Given(32_607, 524_288, None, 4096, 0.789, 0.9, True, frozenset(), weight_bytes(CONFIG, "bf16"))
# SGLang's resolution of a server on a GPU of 32 GB, which is not here. Nothing of it asks for the GPU.
RESOLVE = """
import json, logging, sys
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.arg_groups import memory_hook
from sglang.srt.arg_groups.overrides import resolution_result
from sglang.srt.server_args import prepare_server_args
from sglang.srt.utils import common

class Messages(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())

memory_mib, *lines = json.loads(sys.argv[1])
memory_hook.get_device_memory_capacity = common.get_device_memory_capacity = lambda device=None: memory_mib
logging.getLogger("sala_sglang.plugin.memory_defaults").addHandler(Messages(logging.WARNING))
result = []
for line in lines:
    said = []
    arguments = prepare_server_args(line)
    arguments.resolve_once()
    fields = "mem_fraction_static", "max_mamba_cache_size", "chunked_prefill_size"
    result.append({field: resolution_result(arguments, field) for field in fields} | {"said": said})
print("RESULT" + json.dumps(result))
"""


def holds(given: Given, found: dict) -> bool:
    """Whether pages hold the context beside the states, and a step beside the pools."""
    total, fraction = given.memory_mib * MIB, found.get("mem_fraction_static", given.fraction)
    chunk = found.get("chunked_prefill_size", given.chunk_tokens)
    parts = memory_bytes(CONFIG, Load(given.context_tokens, 1, chunk))
    beside = sum(size for name, size in parts.items() if name not in POOLS)
    states = (found["max_mamba_cache_size"] + 1) * state_bytes(CONFIG)
    pages = parts["keys and values"] + parts["compressed keys"]
    pools = fraction * (total - plan.BEFORE_BYTES)
    return given.weights + states + pages <= pools and pools + beside <= total


@pytest.mark.parametrize("memory_mib", [24_564, 32_607, 46_068, 49_140])
@pytest.mark.parametrize("context", [131_072, 262_144, 524_288, 2**20, 2**21])
@pytest.mark.parametrize("weights", ["bf16", "fp8"])
def test_what_is_declared_holds(memory_mib, context, weights):
    given = RTX_5090._replace(memory_mib=memory_mib, context_tokens=context, weights=weight_bytes(CONFIG, weights))
    if found := memory_defaults(CONFIG, given):
        assert holds(given, found) and found["max_mamba_cache_size"] >= 5


def test_a_small_gpu_gives_states_for_pages():
    found = memory_defaults(CONFIG, RTX_5090)
    assert holds(RTX_5090, found) and "chunked_prefill_size" not in found
    assert 0.789 < found["mem_fraction_static"] < 0.82, "no more than is needed"


def test_large_gpus_and_whatever_fits_keep_what_they_have():
    large = RTX_5090._replace(memory_mib=81_559, fraction=0.3, context_tokens=2**21)
    assert memory_defaults(CONFIG, large) == {}
    assert memory_defaults(CONFIG, RTX_5090._replace(context_tokens=65_536)) == {}


def test_what_cannot_fit_is_left_to_sglang():
    assert memory_defaults(CONFIG, RTX_5090._replace(context_tokens=2**22)) == {}


def test_what_the_user_named_stays():
    given = RTX_5090._replace(context_tokens=2**20, named=frozenset({"mem_fraction_static", "chunked_prefill_size"}))
    assert memory_defaults(CONFIG, given) == {}, "needs a larger fraction"
    found = memory_defaults(CONFIG, given._replace(fraction=0.9))
    assert set(found) == {"max_mamba_cache_size"} and holds(given._replace(fraction=0.9), found)


@pytest.mark.parametrize("memory_mib", [32_607, 81_559])
def test_sglang_takes_them(tmp_path, memory_mib):
    SALAConfig(architectures=[ARCHITECTURE], dtype="bfloat16").save_pretrained(tmp_path)
    command = f"--model {tmp_path} --device cuda --skip-tokenizer-init --load-format dummy"
    lines = [command, f"{command} --max-mamba-cache-size 9", f"{command} --mem-fraction-static 0.8"]
    done = run_python(RESOLVE, json.dumps([memory_mib, *(line.split() for line in lines)]))
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert found, done.stderr
    plain, divided, fraction = json.loads(found[0].removeprefix("RESULT"))
    if memory_mib > 60 * 1024:
        assert plain["max_mamba_cache_size"] is None and not plain["said"]
        return
    assert plain["max_mamba_cache_size"] == 69 and plain["mem_fraction_static"] == 0.803
    (said,) = plain["said"]
    assert "on this GPU of 32607 MiB max_mamba_cache_size = 69, mem_fraction_static = 0.803, so that a" in said
    assert divided["max_mamba_cache_size"] == 9 and not divided["said"]
    assert fraction["mem_fraction_static"] == 0.8 and fraction["max_mamba_cache_size"] == 67
