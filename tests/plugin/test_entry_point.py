"""Registration with SGLang, and that it fails aloud."""

import pytest

from sala_sglang.plugin.hooks import hook_around
from tests.plugin.processes import resolve, run_python


def test_switch_leaves_sglang_alone(tiny_checkpoint):
    (found,) = resolve([f"--model {tiny_checkpoint} --device cpu"], SALA_DISABLE="1")
    assert found["config"] == "sglang.srt.configs.minicpm"
    assert found["attention_backend"] != "sala"


def test_failed_registration_ends_the_process_with_the_reason():
    code = (
        "from sala_sglang.plugin import entry_point\n"
        "def broken(*args, **kwargs): raise AttributeError('no such registry')\n"
        "entry_point._register_model_package = broken\n"
        "from sglang.srt.plugins import load_plugins\n"
        "load_plugins()\n"
        "print('went on')\n"
    )
    done = run_python(code)
    assert done.returncode != 0 and "went on" not in done.stdout
    assert "no such registry" in done.stderr and "SALA_DISABLE=1" in done.stderr


def test_hook_that_sglang_cannot_apply_is_an_error():
    code = (
        "from sala_sglang.plugin import hooks\n"
        "target = 'sglang.srt.server_args.ServerArgs.no_such_method'\n"
        "hooks.HOOK_TARGETS[target] = hooks.AROUND\n"
        "hooks.hook_around({target: print})\n"
        "hooks.apply_hooks()\n"
    )
    assert "SGLang has no sglang.srt.server_args.ServerArgs.no_such_method" in run_python(code).stderr


def test_hook_that_is_not_in_the_ledger_is_an_error():
    with pytest.raises(KeyError, match=r"sglang\.srt\.server_args\.publish is not in the ledger"):
        hook_around({"sglang.srt.server_args.publish": print})


def test_untested_sglang_version_is_named():
    code = (
        "import importlib.metadata, logging\n"
        "logging.basicConfig()\n"
        "from sala_sglang.plugin import entry_point\n"
        "importlib.metadata.version = lambda name: '9.9.9'\n"
        "entry_point._warn_of_untested_version()\n"
    )
    error = run_python(code).stderr
    assert "9.9.9" in error and "0.5.23" in error
