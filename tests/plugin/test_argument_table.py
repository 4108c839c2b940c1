"""The table of arguments has every argument of SGLang once, and says nothing that is not so."""

import runpy
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from sglang.srt.server_args import ServerArgs

from sala_sglang.plugin.argument_table import TABLE, fixed_limits
from sala_sglang.plugin.argument_table.verdict import OTHER, READ, REFUSED, TESTED
from sala_sglang.plugin.server_arguments import check_limits

TESTS = Path(__file__).parents[1]
EVERY_SERVER = TESTS.parent / "testing" / "server.py"
FIELDS = {field.name: field for field in msgspec.structs.fields(ServerArgs)}


def test_every_argument_of_sglang_has_one_verdict():
    counted = Counter(field for verdict in TABLE for field in verdict.fields)
    assert set(FIELDS) - set(counted) == set(), "SGLang has arguments that the table lacks"
    assert set(counted) - set(FIELDS) == set(), "the table names arguments that SGLang lacks"
    assert [field for field, count in counted.items() if count > 1] == []


@pytest.mark.parametrize("verdict", TABLE, ids=lambda verdict: verdict.fields[0])
def test_verdicts_are_complete(verdict):
    assert verdict.status in (TESTED, READ, REFUSED, OTHER)
    assert verdict.test or verdict.status != TESTED
    assert bool(verdict.allowed) == (verdict.status == REFUSED)
    assert verdict.remark or verdict.status == TESTED


TESTED_VERDICTS = [verdict for verdict in TABLE if verdict.test]


@pytest.mark.parametrize("verdict", TESTED_VERDICTS, ids=lambda verdict: f"{verdict.test}-{verdict.fields[0]}")
def test_tests_exist_and_give_the_arguments(verdict):
    text = (TESTS / verdict.test).read_text() + EVERY_SERVER.read_text()
    for field in verdict.fields:
        assert f"--{field.replace('_', '-')}" in text, field


@pytest.mark.parametrize("field, allowed, reason", fixed_limits(), ids=lambda value: str(value)[:40])
def test_what_sglang_does_by_default_is_allowed_and_other_values_are_not(field, allowed, reason):
    if FIELDS[field].default is not msgspec.NODEFAULT:
        assert FIELDS[field].default in allowed
    check_limits({field: allowed[-1]}.get, fixed_limits_of(field))
    with pytest.raises(ValueError, match=f"{field} = 'nothing like it' is not supported .*; allowed: "):
        check_limits({field: "nothing like it"}.get, fixed_limits_of(field))


def fixed_limits_of(field: str) -> list:
    return [limit for limit in fixed_limits() if limit[0] == field]


def test_page_is_what_the_script_makes():
    script = runpy.run_path(str(TESTS.parent / "scripts" / "reference_server_arguments.py"))
    assert script["PAGE"].read_text() == script["page"](), "run python scripts/reference_server_arguments.py"
