"""The table of compiled kernels is that of the code, for every generation of GPUs; and what it finds wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sala_kernels.targets import LIMITS

from benchmarks.common import results_file
from benchmarks.operators.ahead.check import (
    MORE_SPILL_BYTES,
    MOST_SPILL_BYTES,
    differences,
    kernel_names,
    key_of,
    problems,
    sample,
)
from benchmarks.operators.ahead.compiler import Measures, measures_of_shared_blocks, programs
from benchmarks.operators.ahead.entries import Entry
from testing.server import START_SECONDS

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "benchmarks" / "results" / "operators" / "registers.csv"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return results_file.read(TABLE)


@pytest.fixture(scope="module")
def launched(rows) -> list[Entry]:
    return [Entry(key_of(row), row["chosen"], lambda: pytest.fail("compiles")) for row in rows]


def test_the_table_is_that_of_the_code():
    """Everything launched stands there and fits its GPU, and a sample compiles to what stands there."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.operators.registers", "--check", str(TABLE)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=START_SECONDS)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_every_kernel_and_capability_is_in_the_sample(rows, launched):
    chosen = sample(launched)
    assert {entry.key.kernel for entry in chosen} == kernel_names() == {row["kernel"] for row in rows}
    assert {entry.key.capability for entry in chosen} == {"{}.{}".format(*one) for one in LIMITS}


def test_what_is_wrong_is_found(rows, launched):
    assert not list(problems(rows, launched))
    first = launched[0].key
    assert list(problems(rows[1:], launched)) == [f"launched and not in the table: {first}"]
    assert list(problems(rows, launched[1:])) == [f"in the table and not launched: {first}"]
    without = [entry for entry in launched if entry.key.kernel != "_merge_kernel"]
    kept = [row for row in rows if row["kernel"] != "_merge_kernel"]
    assert list(problems(kept, without)) == ["no call launches _merge_kernel"]
    bound = MORE_SPILL_BYTES.get(first.kernel, MOST_SPILL_BYTES)
    spilling = [rows[0] | {"spill_bytes": str(bound + 8)}, *rows[1:]]
    assert list(problems(spilling, launched)) == [f"spills {bound + 8} bytes: {first}"]
    too_large = [rows[0] | {"per_sm": "0"}, *rows[1:]]
    assert list(problems(too_large, launched)) == [f"does not fit on a multiprocessor: {first}"]


@pytest.mark.parametrize(
    ("name", "more", "found"),
    [("registers", 4, False), ("registers", -4, False), ("registers", 8, True), ("shared_bytes", 4, True)],
)
def test_what_compiles_to_another_result_is_found(rows, launched, name, more, found):
    before = rows[0]
    compiled = {field: int(before[field]) for field in Measures.__dataclass_fields__}
    now = Measures(**compiled | {name: compiled[name] + more})
    changed = list(differences(rows, [launched[0]._replace(measure=lambda: now)]))
    assert len(changed) == found and all(f"{name} {compiled[name]} → {getattr(now, name)}" in one for one in changed)


@pytest.mark.parametrize(
    ("capability", "arguments", "fit"),
    [
        ((9, 0), (255, 128, 90_112), 2),
        ((8, 9), (64, 128, 49_152), 2),
        ((8, 9), (64, 128, 101_377), 0),
        ((8, 6), (32, 32, 0), 16),
        ((10, 0), (64, 128, 0, 256), 2),
    ],
)
def test_programs_that_fit(capability, arguments, fit):
    assert programs(LIMITS[capability], *arguments) == fit


def test_compiled_kernel_in_cuda():
    found = measures_of_shared_blocks(16, (9, 0))
    assert found.spill_bytes == found.stack_bytes == 0
    # What the warps that attend take beyond their share at the launch, those that fetch give back.
    assert found.warps == 12 and 32 * found.warps * found.registers >= 32 * (8 * 232 + 4 * 40)
