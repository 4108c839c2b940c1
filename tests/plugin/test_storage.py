"""Files of pages and states: whose they are, whether they are whole, and a disk that is full."""

import multiprocessing
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig

from sala_sglang.config import SALAConfig
from sala_sglang.plugin import storage
from sala_sglang.plugin.weight_digests import weights_digest

KEY, STATE = "ab" * 32, "ab" * 32 + ".mamba"
ONE_RANK = HiCacheStorageConfig(
    tp_rank=0,
    tp_size=1,
    pp_rank=0,
    pp_size=1,
    attn_cp_rank=0,
    attn_cp_size=1,
    is_mla_model=False,
    enable_storage_metrics=False,
    is_page_first_layout=False,
    model_name="models/sala",
)

_GROUP = SimpleNamespace(world_size=1, is_first_rank=True, is_last_rank=True)
ALONE = SimpleNamespace(tp_group=_GROUP, pp_group=_GROUP)


def runner(**changes) -> SimpleNamespace:
    """As much of a model runner as a fingerprint reads."""
    model = torch.nn.Linear(4, 3)
    torch.nn.init.ones_(model.weight)
    torch.nn.init.zeros_(model.bias)
    config = SimpleNamespace(hf_config=SALAConfig(), dtype=torch.bfloat16)
    return SimpleNamespace(**{"model_config": config, "kv_cache_dtype": torch.bfloat16, "model": model} | changes)


@pytest.fixture(autouse=True)
def served(monkeypatch) -> SimpleNamespace:
    """A runner whose files these are, and no compiler."""
    monkeypatch.setattr(storage, "get_hash_str", lambda *arguments, **options: "")
    one = runner()
    monkeypatch.setattr(storage, "_served", [one])
    monkeypatch.setattr(storage, "get_parallel", lambda: ALONE)
    return one


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def files(directory) -> storage.PageFiles:
    return storage.PageFiles(ONE_RANK)


def page(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed)).bfloat16()


def read(files: storage.PageFiles, key: str = KEY) -> torch.Tensor | None:
    return files.get(key, torch.empty(48, dtype=torch.bfloat16))


@pytest.mark.parametrize("key", [KEY, STATE])
def test_what_was_written_is_read(files, key):
    assert not files.exists(key) and read(files, key) is None
    assert files.set(key, page())
    assert files.exists(key) and torch.equal(read(files, key), page().flatten())


def test_many_are_read_in_order(files):
    keys = [f"{number:064x}" for number in range(40)]
    for number, key in enumerate(keys):
        assert files.set(key, page(number))
    found = files.batch_get([*keys, KEY], [torch.empty(48, dtype=torch.bfloat16) for _ in range(41)])
    assert all(torch.equal(one, page(number).flatten()) for number, one in enumerate(found[:-1]))
    assert found[-1] is None


def flip_a_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[5] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "a bit": flip_a_bit,
    "the end is missing": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "nothing is there": lambda path: path.write_bytes(b""),
    "without a seal": lambda path: path.write_bytes(path.read_bytes()[:96]),
    "zeros": lambda path: path.write_bytes(bytes(112)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_removed_and_can_be_written_again(files, directory, damage):
    files.set(KEY, page())
    (path,) = directory.glob("*.bin")
    damage(path)
    assert read(files) is None and not path.exists() and not files.exists(KEY)
    assert files.set(KEY, page()) and torch.equal(read(files), page().flatten())


def test_a_file_under_another_name_is_not_used(files, directory):
    files.set(KEY, page())
    (path,) = directory.glob("*.bin")
    shutil.copy(path, directory / path.name.replace(KEY, "cd" * 32))
    assert read(files, "cd" * 32) is None


OTHERS = {
    "rank": lambda: (replace(ONE_RANK, tp_rank=0, tp_size=2), runner()),
    "stage": lambda: (replace(ONE_RANK, pp_rank=0, pp_size=2), runner()),
    "layout": lambda: (replace(ONE_RANK, is_page_first_layout=True), runner()),
    "dtype of keys and values": lambda: (ONE_RANK, runner(kv_cache_dtype=torch.float8_e4m3fn)),
    "dtype": lambda: (ONE_RANK, runner(model_config=SimpleNamespace(hf_config=SALAConfig(), dtype=torch.float32))),
    "configuration": lambda: (
        ONE_RANK,
        runner(model_config=SimpleNamespace(hf_config=SALAConfig(rope_theta=2e4), dtype=torch.bfloat16)),
    ),
    "weights": lambda: (ONE_RANK, runner(model=torch.nn.Linear(4, 3))),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_files_of_another_server_are_not_found(files, other):
    files.set(KEY, page())
    config, storage._served[0] = other()
    assert not storage.PageFiles(config).exists(KEY)


@pytest.mark.parametrize("variable", ["SGLANG_MINICPM_DENSE_AS_SPARSE", "SGLANG_MINICPM_FORCE_DENSE"])
def test_nor_of_one_that_attends_otherwise(files, monkeypatch, variable):
    files.set(KEY, page())
    monkeypatch.setenv(variable, "1")
    assert not storage.PageFiles(ONE_RANK).exists(KEY)


@pytest.mark.parametrize("name", ["models/sala", None, "a long way to the same weights/" * 20])
def test_the_same_weights_find_them_again(files, name):
    files.set(KEY, page())
    storage._served[0] = runner()
    assert storage.PageFiles(replace(ONE_RANK, model_name=name)).exists(KEY)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.bfloat16, torch.float32])
def test_digests_tell_weights_apart(dtype):
    """One value, rows or columns in another order, another name, and tensors of one value."""
    values = torch.arange(12).reshape(3, 4).to(dtype).t()
    changed = values.clone()
    changed[3, 1] = 2
    forms = {"a": values}, {"a": changed}, {"a": values.float().flip(0).to(dtype)}, {"b": values}
    forms += {"a": values.float().flip(1).to(dtype)}, {"a": values, "scale": values[0, 0]}, {"a": values.flatten()}
    digests = [weights_digest(parameters(form)) for form in forms]
    assert len(set(digests)) == len(forms)
    assert weights_digest(parameters({"a": values.clone()})) == digests[0]


def parameters(tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = torch.nn.Module()
    for name, values in tensors.items():
        model.register_parameter(name, torch.nn.Parameter(values, requires_grad=False))
    return model


def test_replaced_weights_leave_their_files(files, served):
    """SGLang empties the prefix cache when weights have been replaced."""
    files.set(KEY, page())
    cache = SimpleNamespace(cache_controller=SimpleNamespace(storage_backend=files))
    storage.renew_after_reset(lambda cache: None, cache)
    assert files.exists(KEY)
    served.model.weight.data[0, 0] = 3
    storage.renew_after_reset(lambda cache: None, cache)
    assert not files.exists(KEY)


def test_a_cache_without_files_is_emptied():
    cache, emptied = SimpleNamespace(cache_controller=None), []
    storage.renew_after_reset(emptied.append, cache)
    assert emptied == [cache]


def write_with_little_space(values: torch.Tensor) -> None:
    files = storage.PageFiles(ONE_RANK)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
    files.set(KEY, values)


@pytest.mark.parametrize("elements", [48, 1 << 20])
def test_a_full_disk_costs_the_file_and_nothing_else(files, elements):
    """Where little is missing, NumPy notices nothing: then the file is there, and its seal is not."""
    values = torch.arange(elements, dtype=torch.int32)
    process = multiprocessing.get_context("fork").Process(target=write_with_little_space, args=(values,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert files.get(KEY, torch.empty_like(values)) is None
    assert files.set(KEY, values) and torch.equal(files.get(KEY, torch.empty_like(values)), values)
    assert len(list(Path(files.file_path).iterdir())) == 1
