"""Two prompts and a few tokens more through SGLang's model runner on groups of ranks, with what every operator made.

    python -m tests.parallel.ranks CHECKPOINT OUT GROUP [GROUP ...]

A group is TPxPP: so many tensor-parallel ranks in each of so many pipeline stages.

A rank is a process with SGLang's model runner, pools, attention backends and process groups, over gloo; all that is
missing of a server is the scheduler. Ranks are forked after the imports, which take longer than everything else.
``OUT/{group}/{rank}.pt`` of every rank, those of the first stage first, holds a dictionary of tensors and lists of
tensors: see ``run_rank``.
"""

import importlib
import multiprocessing
import os
import sys
from array import array
from collections import defaultdict
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from testing.server import Port

# A sparse prompt and a dense one, each in two chunks that end inside a page, and tokens after them.
PROMPT_TOKENS, FIRST_CHUNK = (700, 130), (450, 70)
DECODE_STEPS = 3
STALL_SECONDS = 1800  # until the first rank of a group ends, and from one end to the next
# What is kept of an operator's call: its result, and arguments by their position.
RECORDED: dict[str, dict[str, dict[int, str]]] = {
    "sala_sglang.attention.sparse_backend": {"select_blocks": {0: "group_queries"}, "sparse_attention": {}},
    "sala_sglang.attention.lightning_backend": {"lightning_chunk": {}, "lightning_step": {}},
    "sala_sglang.models.layers": {"mean_square_part": {}, "gated_norm": {0: "to_norm", 4: "mean_square"}},
}


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(10, 500, (length,), generator=generator).tolist() for length in PROMPT_TOKENS]


def main() -> None:
    checkpoint, out, *groups = sys.argv[1:]
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.benchmark import one_batch  # noqa: F401  imported once, before the ranks part
    from sglang.srt.server_args import PortArgs, prepare_server_args

    for group in groups:
        folder = Path(out, group)
        folder.mkdir(parents=True)
        tensor_parallel, stages = map(int, group.split("x"))
        ranks = tensor_parallel * stages
        # SGLang wants to be told which cores a rank runs on when there are more ranks than NUMA nodes.
        os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(str(rank % (os.cpu_count() or 1)) for rank in range(ranks))
        arguments = f"--model-path {checkpoint} --device cpu --dtype float32 --disable-radix-cache"
        port = Port()
        arguments += f" --tp-size {tensor_parallel} --pp-size {stages} --nccl-port {port.number}"
        arguments += " --max-total-tokens 2048 --max-running-requests 2 --max-mamba-cache-size 4"
        server_args = prepare_server_args(arguments.split())
        server_args.resolve_once()
        run_group(ranks, server_args, PortArgs.init_new(server_args), folder)
        port.release()


def run_group(ranks: int, server_args, ports, folder: Path) -> None:
    """Run all ranks to their ends. Raises RuntimeError when one fails or waits for the others in vain."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=run_rank, args=(server_args, ports, rank, folder)) for rank in range(ranks)]
    for process in processes:
        process.start()
    running = list(processes)
    while running:
        ended = wait([process.sentinel for process in running], timeout=STALL_SECONDS)
        for process in [process for process in running if process.sentinel in ended]:
            process.join()
            running.remove(process)
        codes = [process.exitcode for process in processes]
        if not ended or any(codes):
            for process in running:
                process.kill()
            raise RuntimeError(f"{ranks} ranks ended with {codes}; None was killed")


def run_rank(server_args, ports, rank: int, folder: Path) -> None:
    from sglang.benchmark import one_batch

    placement = one_batch.SpawnRanks(world_rank=rank, gpu_id=rank)
    one_batch.publish(server_args, role="scheduler", ranks=placement)
    runner, _ = one_batch.load_model(server_args, ports, rank, rank)
    runner = runner.torch_runner
    result: defaultdict[str, Any] = defaultdict(list)
    result["parameters"] = {name: parameter.data for name, parameter in runner.model.named_parameters()}
    result["log_decay"] = runner.attn_backend.linear_attn_backend.log_decay
    record_operators(result)
    record_branches(runner.model, result)
    generate(StageRunner(runner), result)
    keep_pools(runner, result)
    torch.save(dict(result), folder / f"{rank}.pt")


def record_operators(result: dict[str, list]) -> None:
    """From here on every call of an operator appends its tensors to ``result``."""
    for module_name, operators in RECORDED.items():
        module = importlib.import_module(module_name)
        for name, arguments in operators.items():
            setattr(module, name, recorded(getattr(module, name), name, arguments, result))


def recorded(operator, name: str, arguments: dict[int, str], result: dict[str, list]):
    def call(*args, **options):
        output = operator(*args, **options)
        # Clones: a reduction may work in place.
        result[name].append(output.clone())
        for position, argument in arguments.items():
            if args[position] is not None:
                result[argument].append(args[position].clone())
        return output

    return call


def record_branches(model: Any, result: dict[str, list]) -> None:
    """Keep what every mixer and MLP adds to the residual stream."""
    for layer in model.model.layers[model.start_layer : model.end_layer]:
        for module, name in ((layer.self_attn, "mixer_output"), (layer.mlp, "mlp_output")):
            module.register_forward_hook(lambda _, args, output, name=name: result[name].append(output.clone()))


class StageRunner:
    """The model runner of a pipeline stage, for callers that know of one stage only.

    Steps take in what the stage before hands on, sent as SGLang's scheduler sends it, and end with the same tokens on
    all stages. Logits are None but on the last stage.
    """

    def __init__(self, runner: Any):
        from sglang.srt.runtime_context import get_parallel

        self._runner = runner
        self._group = get_parallel().pp_group
        self._tensor_parallel = get_parallel().attn_tp_group if get_parallel().attn_tp_size > 1 else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, batch: Any) -> Any:
        from sglang.srt.model_executor.forward_batch_info import PPProxyTensors

        given = None
        if not self._group.is_first_rank:
            given = PPProxyTensors(self._group.recv_tensor_dict(all_gather_group=self._tensor_parallel))
        output = self._runner.forward(batch, pp_proxy_tensors=given)
        if self._group.is_last_rank:
            return output
        self._group.send_tensor_dict(output.logits_output.tensors, all_gather_group=self._tensor_parallel)
        return SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=None))

    def sample(self, logits: Any, batch: Any) -> torch.Tensor:
        tokens = self._runner.sample(logits, batch) if self._group.is_last_rank else None
        return self._group.broadcast_object(tokens, src=self._group.world_size - 1)


def generate(runner, result: dict[str, list]) -> None:
    """Greedy tokens [2] and logits [2, vocabulary] after the prompts and after each of the tokens that follow."""
    from sglang.benchmark import one_batch

    requests = []
    for number, (prompt, end) in enumerate(zip(prompts(), FIRST_CHUNK, strict=True)):
        sampling = one_batch.SamplingParams(temperature=0, max_new_tokens=DECODE_STEPS + 1)
        request = one_batch.Req(number, "", array("q", prompt), sampling)
        request.full_untruncated_fill_ids = request.origin_input_ids
        request.logprob_start_len, request.extend_end = -1, end
        requests.append(request)
    one_batch.extend(requests, runner)
    for request, end in zip(requests, FIRST_CHUNK, strict=True):
        request.prefix_len, request.extend_end = end, len(request.origin_input_ids)
    tokens, logits, batch = one_batch.extend(requests, runner)
    for _ in range(DECODE_STEPS):
        result["tokens"].append(tokens)
        result["logits"].append(logits)
        tokens, logits = one_batch.decode(tokens, batch, runner)
    result["tokens"].append(tokens)
    result["logits"].append(logits)


def keep_pools(runner, result: dict[str, list]) -> None:
    from sala_sglang.attention.kv_pool import layer_buffers

    for layer in runner.token_to_kv_pool.full_attention_layer_id_mapping:
        for name, pool in zip(
            ("keys", "values", "compressed"), layer_buffers(runner.token_to_kv_pool, layer), strict=True
        ):
            result[name].append(pool)
    for layer in runner.req_to_token_pool.mamba_map:
        result["states"].append(runner.req_to_token_pool.mamba2_layer_cache(layer).temporal)


if __name__ == "__main__":
    main()
