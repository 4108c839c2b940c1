"""The benchmark of products: it runs everywhere, goes on where it ended, and times nothing that is wrong."""

import csv
from functools import partial

import pytest
import torch

from benchmarks.operators import linear, linear_kernels
from benchmarks.operators.linear import COLUMNS, ROWS, SHAPES, main
from benchmarks.operators.linear_kernels import FORMATS, KERNELS, make_weight, weight_bytes
from benchmarks.operators.linear_predictions import EXPECTED, floor_us, predicted_us
from benchmarks.report.rows import RESULTS

H100 = "NVIDIA H100 80GB HBM3"
BY_NAME = {kernel.name: kernel for kernel in KERNELS}


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_dry_run_goes_on_where_it_ended(tmp_path):
    output = tmp_path / "linear.csv"
    start = partial(main, ["--dry-run", "--output", str(output), "--commit", "abc"])
    start()
    rows = read(output)
    assert all(tuple(row) == COLUMNS and float(row["median_us"]) > 0 and row["commit"] == "abc" for row in rows)
    here = {kernel.name for kernel in KERNELS if not kernel.needs_gpu}
    assert {row["kernel"] for row in rows} == here and {row["format"] for row in rows} == set(FORMATS)
    start()
    assert read(output) == rows
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:3]))
    start()
    assert [row["kernel"] for row in read(output)] == [row["kernel"] for row in rows]


def test_the_time_is_limited(tmp_path, capsys):
    main(["--dry-run", "--output", str(tmp_path / "linear.csv"), "--limit-seconds", "-1"])
    assert not (tmp_path / "linear.csv").exists() and "goes on from here" in capsys.readouterr().err


def test_a_wrong_product_is_not_timed(tmp_path, monkeypatch):
    multiply = linear_kernels.skinny_linear
    monkeypatch.setattr(linear_kernels, "skinny_linear", lambda x, weight: 1.03 * multiply(x, weight))
    with pytest.raises(AssertionError, match=r"skinny_linear differs from the dequantised product by 0\.0[23]"):
        main(["--dry-run", "--output", str(tmp_path / "linear.csv")])


def test_a_library_that_is_missing_is_left_out(tmp_path, monkeypatch, capsys):
    def missing(x, weight):
        raise ImportError("no such library")

    kernels = linear_kernels.Kernel("missing", FORMATS[0], missing, needs_gpu=False), BY_NAME["cublas"]
    monkeypatch.setattr(linear, "KERNELS", kernels)
    monkeypatch.setitem(EXPECTED, "missing", EXPECTED["cublas"])
    main(["--dry-run", "--output", str(tmp_path / "linear.csv")])
    assert {row["kernel"] for row in read(tmp_path / "linear.csv")} == {"cublas"}
    assert "tiny, 1 rows, missing: ImportError: no such library" in capsys.readouterr().err


def test_another_file_is_refused(tmp_path, capsys):
    (tmp_path / "other.csv").write_text("a,b\n")
    with pytest.raises(SystemExit):
        main(["--dry-run", "--output", str(tmp_path / "other.csv")])
    assert "has other columns" in capsys.readouterr().err


@pytest.mark.parametrize("form", FORMATS)
def test_bytes_are_those_of_the_tensors(form):
    weight = make_weight(form, 256, 512, "cpu")
    tensors = [weight] if isinstance(weight, torch.Tensor) else [tensor for tensor in weight if tensor is not None]
    assert weight_bytes(form, 256, 512) == sum(tensor.nbytes for tensor in tensors)


def test_floors_and_predictions(tmp_path):
    # 4096 · 4096 codes, a float32 scale for each output, one row in and out, at 3.35 TB/s.
    floor = floor_us(BY_NAME["CUTLASS"], 1, 4096, 4096, H100)
    assert floor == pytest.approx((4096 * 4096 + 4 * 4096 + 2 * 2 * 4096) / 3.35e6, rel=1e-9)
    assert floor_us(BY_NAME["CUTLASS"], 8192, 4096, 4096, H100) == pytest.approx(2 * 8192 * 4096**2 / 1979e6)
    assert floor_us(BY_NAME["Marlin"], 8192, 4096, 4096, H100) == pytest.approx(2 * 8192 * 4096**2 / 989e6)
    for kernel in KERNELS:
        for outputs, inputs, _ in SHAPES.values():
            for rows in ROWS:
                sizes = kernel, rows, outputs, inputs, H100
                assert floor_us(*sizes) < predicted_us(*sizes)


def test_predictions_of_16_bits_are_near_what_was_measured():
    """Those that were fitted: within a tenth for skinny_linear with one row."""
    measured = {(16384, 4096): 43.2, (8704, 4096): 23.7, (4096, 4096): 11.7}
    for (outputs, inputs), microseconds in measured.items():
        predicted = predicted_us(BY_NAME["skinny_linear"], 1, outputs, inputs, H100)
        assert predicted == pytest.approx(microseconds, rel=0.1)


def test_committed_predictions_are_what_the_script_says(tmp_path):
    output = tmp_path / "predicted.csv"
    main(["--predict", "--output", str(output)])
    assert output.read_text() == (RESULTS / "operators" / "linear_predicted.csv").read_text()
