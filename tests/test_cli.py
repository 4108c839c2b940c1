import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sala_sglang import cli, doctor
from sala_sglang.plugin.touches import TOUCHES
from sala_sglang.plugin.touches.touch import PROCESSES

ROOT = Path(__file__).parents[1]
QUANTIZE = ["quantize", "--model", "checkpoints/sala-tiny", "--out", "x", "--recipe", "fp8"]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("SALA_DISABLE", "SGLANG_PLUGINS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["make-checkpoint", "--preset", "big", "--out", "x"], ["--preset", "'big'", "tiny", "full"]),
        (["make-checkpoint", "--preset", "tiny", "--out", "."], ["--out", "'.'", "empty directory"]),
        (["make-checkpoint", "--preset", "tiny", "--out", "x", "--seed", "-1"], ["--seed", "'-1'", "2**63 - 1"]),
        (["make-checkpoint", "--preset", "tiny"], ["--out"]),
        (["verify", "--model", "nowhere"], ["--model", "'nowhere'", "config.json"]),
        (["quantize", "--model", "nowhere"], ["--model", "'nowhere'", "config.json"]),
        (QUANTIZE[:-1], ["--recipe"]),
        ([*QUANTIZE[:-1], "w8"], ["--recipe", "'w8'", "fp8-block", "w4-fp8gates"]),
        ([*QUANTIZE, "--out", "."], ["--out", "'.'", "empty directory"]),
        ([*QUANTIZE, "--calibration", "none.txt"], ["--calibration", "'none.txt'", "generated"]),
        (["compare"], ["--base-url"]),
        (["compare", "--base-url", "x", "--bounds", "int4"], ["--bounds", "'int4'", "w4a16"]),
        (["compare", "--base-url", "x", "--items", "0"], ["--items", "'0'", "integers from 1"]),
        ([], ["COMMAND"]),
    ],
)
def test_errors_name_argument_value_and_what_is_allowed(arguments, parts, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    for part in parts:
        assert part in message


def test_make_checkpoint(tmp_path, capsys):
    assert cli.main(["make-checkpoint", "--preset", "tiny", "--out", str(tmp_path / "tiny"), "--seed", "7"]) == 0
    assert (tmp_path / "tiny" / "config.json").is_file()
    assert str(tmp_path / "tiny") in capsys.readouterr().out


def test_doctor_reports_what_is_installed(capsys):
    assert cli.main(["doctor"]) == 0
    report = capsys.readouterr().out
    for line in ("Python", "torch", "0.5.23 (tested)", "operator select_blocks", "installed and on", "can start"):
        assert line in report


def test_doctor_is_quick_because_it_leaves_sglang_alone():
    code = "import sys; from sala_sglang import doctor; doctor.run(); sys.exit('sglang' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_doctor_prints_the_ledger_in_100_columns(capsys):
    assert cli.main(["doctor", "--touches"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 100
    left = "".join(line[: doctor.TARGET_WIDTH].strip() for line in lines)
    right = " ".join(line[doctor.TARGET_WIDTH :].strip() for line in lines)
    for touch in TOUCHES:
        assert f"{touch.target}[{touch.how}" in left
        for text in (touch.why, touch.when, touch.until, touch.upstream):
            assert text in right
    for process in PROCESSES:
        assert any(line.startswith(f"{process.upper()}: ") for line in lines)


def test_ledger_needs_neither_sglang_nor_torch():
    code = (
        "import sys; from sala_sglang import doctor; doctor.print_touches(); "
        "sys.exit(bool({'sglang', 'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("name", "value"), [("SALA_DISABLE", "1"), ("SGLANG_PLUGINS", "none"), ("SGLANG_PLUGINS", "other,more")]
)
def test_doctor_sees_a_plugin_that_is_switched_off(name, value, capsys, monkeypatch):
    monkeypatch.setenv(name, value)
    assert cli.main(["doctor"]) == 1
    report = capsys.readouterr().out
    assert "switched off" in report
    assert f"missing: {'the plugin is switched off; unset SALA_DISABLE' if name == 'SALA_DISABLE' else name}" in report


def test_doctor_accepts_an_allow_list_with_the_plugin(capsys, monkeypatch):
    monkeypatch.setenv("SGLANG_PLUGINS", "other, sala")
    assert cli.main(["doctor"]) == 0


def test_doctor_reports_what_is_missing_and_how_to_get_it(capsys, monkeypatch):
    versions = {"sglang": "0.9.9", "triton": None}
    found = doctor._version_of
    monkeypatch.setattr(doctor, "_version_of", lambda name: versions[name] if name in versions else found(name))
    monkeypatch.setattr(doctor, "entry_points", lambda **selection: ())
    assert doctor.run() == 1
    report = capsys.readouterr().out
    for line in (
        "0.9.9 (not tested; tested: 0.5.23)",
        "missing: triton; get it with: pip install 'triton'",
        "missing: the entry point 'sala' of sglang.srt.plugins; get it with: pip install sala-sglang",
        "cannot start",
    ):
        assert line in report


@pytest.mark.parametrize(("major", "enough"), [(9, True), (7, False)])
def test_doctor_describes_gpu_and_driver(major, enough, monkeypatch, tmp_path):
    module = tmp_path / "version"
    module.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC 13.2.0\n")
    gpu = SimpleNamespace(name="NVIDIA Example", total_memory=80 << 30, major=major, minor=0)
    monkeypatch.setattr(doctor, "KERNEL_MODULE", module)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: gpu)
    driver, device, holds, mode = doctor._gpu()
    assert "with bf16 weights, " in holds.found and "with fp8 weights (computed; no known card)" in holds.found
    assert driver.found == "580.95.05"
    assert device.found == f"NVIDIA Example, 80 GiB, compute capability {major}.0"
    assert (device.missing == "") == enough
    assert mode.found == "GPU"


def test_launch_server_explains_itself_before_installing_anything():
    answer = subprocess.run(["bash", "scripts/launch_server.sh", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0
    for option in ("--venv", "--index-url", "MODEL_PATH"):
        assert option in answer.stdout


@pytest.mark.parametrize("script", ["launch_server.sh", "test.sh", "gpu_test.sh"])
def test_scripts_refuse_an_option_without_its_value(script):
    answer = subprocess.run(["bash", f"scripts/{script}", "--venv"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 1
    assert "--venv needs a value" in answer.stderr


def test_uv_gets_the_settings_of_pip(tmp_path):
    pytest.importorskip("pip")
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://packages.example/simple\nextra-index-url =\n    https://a.example\n"
        "    https://b.example\ntimeout = 9\n[install]\nfind-links = /wheels /more\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PIP_CONFIG_FILE": str(config)}
    script = [sys.executable, str(ROOT / "scripts" / "pip_settings.py")]

    def run(**more: str) -> str:
        answer = subprocess.run(script, env=environment | more, capture_output=True, text=True, check=True)
        return answer.stdout

    exports = run().splitlines()
    assert "export UV_DEFAULT_INDEX=https://packages.example/simple" in exports
    assert "export UV_INDEX='https://a.example https://b.example'" in exports
    assert "export UV_FIND_LINKS=/wheels,/more" in exports
    assert "export UV_DEFAULT_INDEX=https://env.example" in run(PIP_INDEX_URL="https://env.example").splitlines()
    assert run(UV_DEFAULT_INDEX="https://own.example") == ""


def test_serving_benchmark_parses_its_arguments():
    script = [sys.executable, "-m", "benchmarks.serving.speed"]
    assert subprocess.run([*script, "--help"], capture_output=True, cwd=ROOT).returncode == 0
    few = [*script, "--model", "x", "--lengths", "64", "--output", "y", "--repetitions", "1"]
    answer = subprocess.run(few, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 2
    assert "--repetitions is 1; allowed: 3 or more" in answer.stderr
