"""``sala-sglang warm``: its kernels are those that a server launches, and a second run finds them and no others."""

import os
import re
import subprocess
import sys

import pytest
import triton
from sala_kernels.sparse_attention import shared_blocks

from sala_sglang import cli
from sala_sglang.ahead import sampling
from sala_sglang.ahead.calls import calls
from sala_sglang.ahead.command import find_capability, make_form
from sala_sglang.plugin import sampling_kernels
from testing import fork_server, recorded_launches
from testing.server import START_SECONDS, Server

CONTEXT = 4096
SHORT_CONTEXT, DIVISIBLE_CONTEXT = "200", "204"  # 4 columns more, and 16 divides what SGLang's table has
MANY = "--max-running-requests", "16"
GREEDY = {"temperature": 0, "ignore_eos": True, "max_new_tokens": 3}
# Prints what `warm` with the given arguments would compile, a line for each, as recorded_launches writes them.
LIST = """
import sys
from sala_sglang.ahead.compile import server_launches
from tests.ahead.test_warm import form_of
from testing.recorded_launches import line
for launch in server_launches(*form_of(sys.argv[1:])):
    print("LAUNCH" + line(launch))
"""


def form_of(words: list[str]) -> tuple:
    """The server that ``warm`` with these arguments compiles for, and the capability of its GPU."""
    options = cli._parser().parse_args(["warm", *words])
    capability = find_capability(options.gpu)
    return make_form(options, capability), capability


def compiled() -> dict[str, str]:
    """This process's environment without Triton's interpreter, and without FlashInfer's compilation."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {"FLASHINFER_DISABLE_JIT": "1"}


def warm(*words: str) -> subprocess.CompletedProcess:
    return fork_server.run_to_end(["-m", "sala_sglang.cli", "warm", *words], compiled(), START_SECONDS)


def listed(*words: str) -> set[str]:
    done = fork_server.run_to_end(["-c", LIST, *words], compiled(), START_SECONDS)
    lines = [line for line in done.stdout.splitlines() if line.startswith("LAUNCH")]
    assert lines, done.stderr
    return {line.removeprefix("LAUNCH") for line in lines}


def ask(server: Server) -> None:
    """Prompts of every kind, one at a time and many together; what they are answered does not matter."""
    for length in (1, 3, 700, 3000):  # a row, dense, several chunks of lightning, sparse
        ids = [5 + index % 900 for index in range(length)]
        server.post("/generate", {"input_ids": ids, "sampling_params": GREEDY})
    server.post("/generate", {"input_ids": [[7 + request] * 20 for request in range(12)], "sampling_params": GREEDY})


@pytest.mark.parametrize("cache", ["auto", "fp8_e4m3"])
@pytest.mark.parametrize("where", ["pretended", pytest.param("on a GPU", marks=pytest.mark.gpu)])
def test_a_server_launches_nothing_else(trained_checkpoint, tmp_path, cache, where):
    """Every launch of a server, with the classes of its arguments, is among those that are compiled ahead."""
    file = tmp_path / "launches"
    environment = {recorded_launches.VARIABLE: str(file)}
    program = "-m", recorded_launches.__name__
    arguments = "--context-length", str(CONTEXT), "--kv-cache-dtype", cache
    with Server(trained_checkpoint, *arguments, *MANY, environment=environment, program=program) as server:
        ask(server)
    launched = set(file.read_text().splitlines())
    kernels = {line.split()[0] for line in launched}
    gpu = ("--gpu", "H100") if where == "pretended" else ()
    ahead = listed(*gpu, "--model", str(trained_checkpoint), *arguments)
    assert not launched - ahead, sorted(launched - ahead)
    assert kernels == {line.split()[0] for line in ahead}, "a kernel that no step launched"


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["auto", "fp8_e4m3"])
def test_a_server_on_a_gpu_compiles_none_of_these_kernels(trained_checkpoint, tmp_path, cache):
    """From its start on, with prompts of every kind. Kernels of SGLang may be added to the cache."""
    arguments = "--context-length", str(CONTEXT), "--kv-cache-dtype", cache
    done = warm("--model", str(trained_checkpoint), "--output", str(tmp_path), *arguments)
    assert done.returncode == 0, done.stderr
    before = set(tmp_path.glob("*/_*_kernel.json"))
    names = {path.name for path in before}
    with Server(trained_checkpoint, *arguments, *MANY, environment={"TRITON_CACHE_DIR": str(tmp_path)}) as server:
        ask(server)
    assert len(names) > 10
    compiled_by_the_server = set(tmp_path.glob("*/_*_kernel.json")) - before
    assert not sorted(path.name for path in compiled_by_the_server if path.name in names)


def test_prompts_of_fp8_weights_have_kernels_where_rows_are_written_in_fp8(trained_checkpoint):
    quantised = trained_checkpoint.with_name("sala-tiny-fp8")
    for gpu, model, expected in (
        ("H100", quantised, True),
        ("RTX 4090", quantised, False),
        ("H100", trained_checkpoint, False),
    ):
        form, _ = form_of(["--gpu", gpu, "--model", str(model)])
        assert ("silu_mul" in {name for name, _ in calls(form)}) == expected, (gpu, model)


def test_a_second_run_finds_everything_and_for_another_table_not(trained_checkpoint, tmp_path):
    sizes = "--gpu", "RTX 4090", "--model", str(trained_checkpoint), "--output", str(tmp_path / "cache")
    counts = []
    for context in (SHORT_CONTEXT, SHORT_CONTEXT, DIVISIBLE_CONTEXT):
        done = warm(*sizes, "--context-length", context)
        assert done.returncode == 0, done.stderr
        pattern = r"^(\d+) kernels for compute capability 8\.9 are in (.+): (\d+) compiled, (\d+) found"
        total, folder, new, found = re.findall(pattern, done.stdout, re.MULTILINE)[0]
        assert folder == str(tmp_path / "cache") and f"TRITON_CACHE_DIR={folder}" in done.stdout
        assert "FlashInfer's sampling is not compiled: " in done.stdout
        counts.append(tuple(map(int, (total, new, found))))
    first, second, third = counts
    assert first == (first[0], first[0], 0) and second == (first[0], 0, first[0])
    assert 0 < third[1] < third[0], "kernels that read the table are others"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["--gpu is needed", "no GPU here", "H100"]),
        (["--gpu", "A100 80 GB", "--kv-cache-dtype", "fp8_e4m3"], ["fp8_e4m3", "8.9", "8.0"]),
        (["--gpu", "H100", "--tp", "3"], ["tp_size = 3", "allowed: 1, 2, 4"]),
    ],
)
def test_servers_that_cannot_be_are_refused(words, parts, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["warm", *words]) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--gpu", "GTX 1080"], "'GTX 1080' is no known card"),
        (["--gpu", "H100", "--speculative-num-draft-tokens", "1"], "integers from 2 to 16"),
        (["--gpu", "H100", "--model", "nowhere"], "no config.json"),
        (["--gpu", "H100", "--kv-cache-dtype", "fp8_e5m2"], "fp8_e4m3"),
    ],
)
def test_impossible_arguments_are_named(words, part, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["warm", *words])
    assert caught.value.code == 2 and part in capsys.readouterr().err


def test_the_kernel_in_cuda_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    first, second, other = (shared_blocks.binary(group, (9, 0)) for group in (16, 16, 8))
    assert second == (first.code, True) and not first.found
    assert not other.found and other.code != first.code


def test_sampling_that_cannot_be_compiled_is_said_at_the_start(monkeypatch, caplog):
    monkeypatch.setenv("FLASHINFER_DISABLE_JIT", "1")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    sampling_kernels.compile_and_report((9, 0))
    assert "FLASHINFER_DISABLE_JIT" in caplog.text and "--sampling-backend pytorch" in caplog.text


def test_reason_of_a_compiler():
    """The first error counts, not that of the program that called the compiler."""
    said = "compiling\na.cu:1:2: fatal error: curand.h: No such file\nninja: build stopped\n"
    code = f"import sys; sys.stderr.write({said!r}); sys.exit(1)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert sampling.problem(process) == "a.cu:1:2: fatal error: curand.h: No such file"
    done = subprocess.Popen([sys.executable, "-c", ""], stderr=subprocess.PIPE, text=True)
    assert sampling.problem(done) == ""
