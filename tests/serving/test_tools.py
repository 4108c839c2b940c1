"""Tools and thinking through the openai client, with no flags: calls, results, answers, streams, thoughts.

What the model would write is forced by a grammar where the test is about how it is read.
"""

import json
from typing import Any, NamedTuple

import openai
import pytest
from transformers import AutoTokenizer

from testing.server import Server
from training.tool_conversations import TOOLS

GET_CODE, FILL_BOX, SAVE_NOTE = TOOLS.values()
HARD = " if a < b && c > d:\n\treturn '</param></function>'\n"  # loses its meaning where it is read as XML


class Answer(NamedTuple):
    """calls: names and arguments. thought: reasoning_content. end: the reason for it."""

    content: str
    calls: list[tuple[str, dict]]
    thought: str
    end: str


def ask(server: Server, question: str | list, stream: bool, **options: Any) -> Answer:
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    arguments: dict[str, Any] = {"model": "default", "messages": messages, "max_tokens": 100, "temperature": 0}
    answer: Any = server.client.chat.completions.create(**arguments | options, stream=stream)
    if stream:
        return joined(answer)
    (choice,) = answer.choices
    message = choice.message
    calls = message.tool_calls or []
    assert len({call.id for call in calls}) == len(calls)
    return Answer(
        message.content,
        [(call.function.name, json.loads(call.function.arguments)) for call in calls],
        message.reasoning_content or "",
        choice.finish_reason,
    )


def joined(events: Any) -> Answer:
    """A stream as the answer that its parts are."""
    content, thought, end = "", "", ""
    calls: dict[int, list[str]] = {}
    for event in events:
        for choice in event.choices:
            content += choice.delta.content or ""
            thought += getattr(choice.delta, "reasoning_content", None) or ""
            end = choice.finish_reason or end
            for part in choice.delta.tool_calls or []:
                call = calls.setdefault(part.index, ["", ""])
                call[0] += part.function.name or ""
                call[1] += part.function.arguments or ""
    return Answer(
        content, [(name, json.loads(arguments)) for _, (name, arguments) in sorted(calls.items())], thought, end
    )


def forced(text: str) -> dict:
    """Options with which the model writes ``text``."""
    return {"extra_body": {"ebnf": f"root ::= {json.dumps(text, ensure_ascii=False)}"}}


def tool(name: str, required: tuple[str, ...] = (), **properties: Any) -> dict:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def call(name: str, **written: str) -> str:
    parameters = "".join(f'<param name="{key}">{value}</param>' for key, value in written.items())
    return f'<function name="{name}">{parameters}</function>'


TYPED = tool(
    "typed",
    count={"type": "integer"},
    share={"type": "number"},
    wanted={"type": "boolean"},
    names={"type": "array", "items": {"type": "string"}},
    digits={"type": "string"},
    maybe={"anyOf": [{"type": "string"}, {"type": "null"}]},
)
FOX, OWL = call("get_code", animal="red fox"), call("get_code", animal="shy owl")
RED_FOX, SHY_OWL = ("get_code", {"animal": "red fox"}), ("get_code", {"animal": "shy owl"})
# What the model writes, the calls that are to be read in it, and what else is left.
WRITTEN: dict[str, tuple[str, list, str]] = {
    "a call": (FOX, [RED_FOX], ""),
    "parallel calls": (f"{FOX}\n{OWL}", [RED_FOX, SHY_OWL], ""),
    "text in front": (f"I look it up.\n{FOX}", [RED_FOX], "I look it up."),
    "text between and behind": (f"{FOX} and\n{OWL} now", [RED_FOX, SHY_OWL], " and now"),
    "CDATA": (call("save_note", text=f"<![CDATA[{HARD}]]>"), [("save_note", {"text": HARD})], ""),
    "CDATA in two parts": (
        call("save_note", text="<![CDATA[a]]]]><![CDATA[>b]]>"),
        [("save_note", {"text": "a]]>b"})],
        "",
    ),
    "without CDATA": (call("save_note", text="a <b>c</b> & d\ne"), [("save_note", {"text": "a <b>c</b> & d\ne"})], ""),
    "tags in a value": (call("save_note", text="a <b>c</b> d"), [("save_note", {"text": "a <b>c</b> d"})], ""),
    "entities": (call("save_note", text="a &lt; b &amp; c"), [("save_note", {"text": "a < b & c"})], ""),
    "types": (
        call("typed", count="3", share="0.5", wanted="true", names='["a", "b"]', digits="42", maybe="null"),
        [("typed", {"count": 3, "share": 0.5, "wanted": True, "names": ["a", "b"], "digits": "42", "maybe": None})],
        "",
    ),
    "no parameters": (call("typed"), [("typed", {})], ""),
    "lines and other quotes": (
        "<function name='get_code'>\n  <param name='animal'>\nred fox\n</param>\n</function>",
        [RED_FOX],
        "",
    ),
    "a function that is not there": (call("get_news"), [], call("get_news")),
    "what only looks like a call": ("A <functional> tag, or a <function", [], "A <functional> tag, or a <function"),
    "an answer": ("The code is < 5.", [], "The code is < 5."),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_read(trained_server, name, stream):
    text, calls, content = WRITTEN[name]
    tools = [*TOOLS.values(), TYPED]
    answer = ask(trained_server, "Hello", stream, tools=tools, max_tokens=200, **forced(text))
    assert answer == Answer(content, calls, "", "tool_calls" if calls else "stop")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_call_that_is_cut_off_stays_text(trained_server, stream):
    answer = ask(trained_server, "Hello", stream, tools=[GET_CODE], max_tokens=8, **forced(FOX))
    assert answer.end == "length" and not answer.calls
    assert answer.content and FOX.startswith(answer.content)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_without_tools_nothing_is_a_call(trained_server, stream):
    for options in ({}, {"tools": [GET_CODE], "tool_choice": "none"}):
        answer = ask(trained_server, "Hello", stream, **options, **forced(FOX))
        assert answer == Answer(FOX, [], "", "stop")


CHOICES = tool("choose", ("colour",), colour={"enum": ["red", "a < b"]}, wanted={"type": "boolean"})


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "choose"}}], ids=["any", "named"]
)
def test_forced_calls(trained_server, choice, stream):
    tools = [CHOICES] if choice == "required" else [CHOICES, GET_CODE]
    options = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False}
    answer = ask(trained_server, "Tell me a story.", stream, **options)
    assert answer.end == "tool_calls" and not answer.content
    ((name, arguments),) = answer.calls
    assert name == "choose" and arguments["colour"] in ("red", "a < b")
    assert arguments.get("wanted") in (None, True, False)


def test_a_choice_that_is_not_there_is_refused(trained_server):
    with pytest.raises(openai.BadRequestError, match="get_news"):
        named = {"type": "function", "function": {"name": "get_news"}}
        ask(trained_server, "Hello", False, tools=[GET_CODE], tool_choice=named)
    with pytest.raises(openai.BadRequestError):
        ask(trained_server, "Hello", False, tool_choice="required")


THOUGHT = "<think>\nI look.\n</think>\n\nThe answer."


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("thinking", [None, False], ids=["unset", "off"])
def test_an_answer_without_a_thought_is_content(trained_server, thinking, stream):
    options = forced("The answer.")
    if thinking is not None:
        options["extra_body"]["chat_template_kwargs"] = {"enable_thinking": thinking}
    assert ask(trained_server, "Hello", stream, **options) == Answer("The answer.", [], "", "stop")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_thought_that_the_model_chose(trained_server, stream):
    answer = ask(trained_server, "Hello", stream, **forced(THOUGHT))
    assert (answer.content.strip(), answer.thought.strip()) == ("The answer.", "I look.")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_thought_that_has_not_ended(trained_server, stream):
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    answer = ask(trained_server, "Hello", stream, max_tokens=2, extra_body=thinking)
    assert answer.thought and not answer.content and answer.end == "length"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_grammar_begins_behind_the_thought(trained_server, trained_checkpoint, stream):
    end = AutoTokenizer.from_pretrained(trained_checkpoint).convert_tokens_to_ids("</think>")
    options = forced("The answer.")
    options["extra_body"]["chat_template_kwargs"] = {"enable_thinking": True}
    # A thought without a word: the model ends it at once.
    answer = ask(trained_server, "Hello", stream, logit_bias={str(end): 100}, **options)
    assert answer == Answer("The answer.", [], "", "stop")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_call_result_and_answer(trained_server, stream):
    tools = [GET_CODE]
    messages = [{"role": "user", "content": "What is the code of the red fox?"}]
    first = trained_server.client.chat.completions.create(
        model="default", messages=messages, tools=tools, temperature=0, **forced(f"{FOX}\n{OWL}")
    )
    message = first.choices[0].message
    messages.append(message)
    for number, one in enumerate(message.tool_calls):
        messages.append({"role": "tool", "tool_call_id": one.id, "content": f"471{number}"})
    text = "The code of the red fox is 4710."
    assert ask(trained_server, messages, stream, tools=tools, **forced(text)) == Answer(text, [], "", "stop")


def test_parsers_are_set(trained_server):
    info = trained_server.get_server_info()
    assert (info["tool_call_parser"], info["reasoning_parser"]) == ("minicpm5", "qwen3")
