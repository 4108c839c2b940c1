"""How tool calls are read and which calls the grammar allows, without a server."""

import json
from types import SimpleNamespace

import pytest
import xgrammar
from transformers import AutoTokenizer

from sala_sglang.plugin.tool_calls import CallDetector, begins_in_thought
from sala_sglang.plugin.tool_grammar import calls_structural_tag
from tests.serving.test_tools import FOX, GET_CODE, HARD, OWL, TYPED, WRITTEN, call, tool
from training.tool_conversations import TOOLS


def as_objects(tools: list[dict]) -> list[SimpleNamespace]:
    """Tools as SGLang's protocol has them."""
    return [SimpleNamespace(function=SimpleNamespace(**{"parameters": None} | one["function"])) for one in tools]


ALL = as_objects([*TOOLS.values(), TYPED])


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_stream_is_read_as_the_whole(name, size):
    text, calls, content = WRITTEN[name]
    detector, found, left = CallDetector(), [], ""
    for begin in range(0, len(text), size):
        part = detector.parse_streaming_increment(text[begin : begin + size], ALL)
        found, left = found + part.calls, left + part.normal_text
    end = detector.finish(ALL)
    whole = CallDetector().detect_and_parse(text, ALL)
    assert (found + end.calls, left + end.normal_text) == (whole.calls, whole.normal_text)
    assert [(one.name, json.loads(one.parameters)) for one in whole.calls] == calls and whole.normal_text == content
    assert [one.tool_index for one in whole.calls] == list(range(len(calls)))


@pytest.mark.parametrize("end", range(1, len(FOX)))
def test_nothing_of_a_call_that_is_cut_off_is_lost(end):
    assert CallDetector().detect_and_parse(f"So: {FOX[:end]}", ALL).normal_text == f"So: {FOX[:end]}"


@pytest.fixture(scope="module")
def tokenizer(trained_checkpoint):
    return AutoTokenizer.from_pretrained(trained_checkpoint)


@pytest.fixture(scope="module")
def allows(tokenizer):
    """Whether the grammar of these tools allows a text, as its end too."""
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=end + 2, stop_token_ids=[end])
    compiler = xgrammar.GrammarCompiler(info)

    def check(tools, text, choice="required", parallel=True):
        tag = calls_structural_tag(as_objects(tools), choice, parallel)
        matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(tag.model_dump_json(by_alias=True)))
        ids = tokenizer.encode(text, add_special_tokens=False)
        return all(matcher.accept_token(token) for token in ids) and matcher.accept_token(end)

    return check


def test_grammar_of_forced_calls(allows):
    tools = [GET_CODE, TOOLS["fill_box"]]
    box = call("fill_box", animal="shy owl", number="12")
    assert allows(tools, FOX) and allows(tools, f"{FOX}\n{box}")
    for text in ("", "I look.", f"I look.\n{FOX}", call("get_code"), call("get_news"), FOX.replace("</param>", "")):
        assert not allows(tools, text), text
    assert not allows(tools, box.replace("12", "twelve"))
    named = SimpleNamespace(function=SimpleNamespace(name="fill_box"))
    assert allows(tools, box, named) and not allows(tools, FOX, named)


def test_grammar_of_at_most_one_call(allows):
    tools = [GET_CODE]
    assert allows(tools, FOX, parallel=False) and not allows(tools, f"{FOX}\n{OWL}", parallel=False)
    for text, allowed in {"Hello": True, f"I look.\n{FOX}": True, f"{FOX}\n{OWL}": False}.items():
        assert allows(tools, text, "auto", parallel=False) == allowed, text


def test_grammar_of_values(allows):
    tools = [tool("f", ("text",), text={"type": "string"}, kind={"enum": ["a", "b&c"]}, count={"$ref": "#/$defs/n"})]
    tools[0]["function"]["parameters"]["$defs"] = {"n": {"type": "integer"}}
    for text in ("a b", "北京, ä", "a > b", "", f"<![CDATA[{HARD}]]>"):
        assert allows(tools, call("f", text=text)), text
    for text in ("a < b", "a & b", "a\nb", " a", "a "):
        assert not allows(tools, call("f", text=text)), text
    assert allows(tools, call("f", text="a", kind="<![CDATA[b&c]]>", count="5"))
    assert not allows(tools, call("f", text="a", kind="c")) and not allows(tools, call("f", text="a", count="x"))


@pytest.mark.parametrize(
    ("choices", "thinks"),
    [(None, False), ({"enable_thinking": True}, True), ({"enable_thinking": False}, False), ({"other": 1}, False)],
)
def test_what_the_template_opens_is_a_thought(tokenizer, choices, thinks):
    serving = SimpleNamespace(tokenizer_manager=SimpleNamespace(tokenizer=tokenizer), reasoning_parser="qwen3")
    request = SimpleNamespace(chat_template_kwargs=choices, reasoning_effort=None)
    assert begins_in_thought(lambda *_: pytest.fail("SGLang was asked"), serving, request) == thinks


def test_templates_of_another_kind_are_left_to_sglang():
    serving = SimpleNamespace(tokenizer_manager=SimpleNamespace(tokenizer=None), reasoning_parser="qwen3")
    request = SimpleNamespace(chat_template_kwargs=None, reasoning_effort=None)
    assert begins_in_thought(lambda *_: "as SGLang says", serving, request) == "as SGLang says"
