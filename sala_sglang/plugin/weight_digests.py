"""Checksums of weights over all ranks, by which files with what others computed are told apart (``storage.py``)."""

import hashlib
from typing import Any

import torch
import xxhash

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_TAG = int.from_bytes(b"SaWd", byteorder="big")  # tells these messages from those that SGLang exchanges
_sent: list[tuple[Any, torch.Tensor]] = []  # to the next stage, which may not have taken it yet


def weights_digest(model: torch.nn.Module) -> str:
    """A checksum of what every parameter's rows and columns sum up to, their words read as integers.

    So of the scales of keys and values in FP8, which are buffers.
    Two passes over the weights, exact in any order of adding; rows that change places change it too.
    """
    checksum = xxhash.xxh3_128()
    scales = {name: values for name, values in model.named_buffers() if name.endswith("kv_scales")}
    for name, values in (dict(model.named_parameters()) | scales).items():
        words = values.detach().view(_WORDS[values.itemsize])
        words = words.flatten(1) if words.ndim > 1 else words.reshape(1, -1)
        checksum.update(name.encode())
        for dimension in (0, 1):
            checksum.update(words.sum(dimension, dtype=torch.int64).cpu().numpy().data)
    return checksum.hexdigest()


def digest_of_ranks(model: torch.nn.Module, ranks: Any, stages: Any) -> str:
    """``weights_digest`` of all ranks on whose weights the keys, values and states of this one depend.

    ranks, stages: SGLang's group coordinators of tensor-parallel ranks and of pipeline stages. Depended on are the
    ranks of the same stage and the stages before it. Every rank calls this at the same place of what it does; no stage
    waits for a later one, since each handles a request before it hands it on.
    """
    digests = [weights_digest(model)]
    if ranks.world_size > 1:
        own, digests = digests[0], [""] * ranks.world_size
        torch.distributed.all_gather_object(digests, own, group=ranks.cpu_group)
    checksum = hashlib.sha256("".join(digests).encode())
    if not stages.is_first_rank:
        before = torch.empty(checksum.digest_size, dtype=torch.uint8)
        torch.distributed.recv(before, group_src=stages.rank_in_group - 1, group=stages.cpu_group, tag=_TAG)
        checksum.update(before.numpy().data)
    if not stages.is_last_rank:
        _send_on(checksum.digest(), stages)
    return checksum.hexdigest()


def _send_on(digest: bytes, stages: Any) -> None:
    for work, _ in _sent:
        work.wait()
    message = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    work = torch.distributed.isend(message, group_dst=stages.rank_in_group + 1, group=stages.cpu_group, tag=_TAG)
    _sent[:] = [(work, message)]
