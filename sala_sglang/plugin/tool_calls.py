"""Tool calls as the model's family writes them, and whether an answer begins inside a thought.

A call is ``<function name="f"><param name="p">value</param></function>``; a value that XML would misread stands in
CDATA. SGLang's parser minicpm5 reads calls with an XML parser and regular expressions, which lose parts of values and,
in streams, text behind whatever looks like a call. Here one scanner reads streams and whole answers alike. Forced calls
are written in the same form, by a grammar, where SGLang would have the model write JSON, which it was not trained on.

Imported by ``http_requests.prepare_frontend`` alone, because it imports SGLang's parsers.
"""

import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang.srt.function_call.core_types import StreamingParseResult, ToolCallItem
from sglang.srt.function_call.minicpm5_detector import MiniCPM5Detector
from sglang.srt.function_call.utils import get_schema_properties, infer_type_from_json_schema
from sglang.srt.parser.reasoning_parser import ReasoningParser

from sala_sglang.plugin.tool_grammar import calls_structural_tag

PARSER = "minicpm5"  # SGLang's name for this form
OPENING, CLOSING = "<function", "</function>"
CDATA, CDATA_END, VALUE_END = "<![CDATA[", "]]>", "</param>"
_FUNCTION = re.compile(r"""<function\s+name\s*=\s*("[^"<>]*"|'[^'<>]*')\s*>""")
_PARAM = re.compile(r"""<param\s+name\s*=\s*("[^"<>]*"|'[^'<>]*')\s*>""")
_TAG_BEGINS = re.compile(r"<function(\s[^>]*)?|<param(\s[^>]*)?")
_LITERALS = {"True": True, "False": False, "None": None}  # as a template prints values without tojson


class Incomplete(Exception):
    """The text ends before one can tell whether it is a call."""


class NotACall(Exception):
    """The text is not of the form of a call."""


@dataclass(frozen=True)
class Value:
    """text: without CDATA marks and entities. literal: whether some of it stood in CDATA, so that it is a text."""

    text: str
    literal: bool


def read_call(text: str, at: int) -> tuple[str, dict[str, Value], int]:
    """Name, parameters and end of the call whose opening is at ``at``. Raises Incomplete and NotACall."""
    name, at = _read_tag(_FUNCTION, text, at)
    values: dict[str, Value] = {}
    while True:
        at = _skip_blanks(text, at)
        if text.startswith(CLOSING, at):
            return name, values, at + len(CLOSING)
        if CLOSING.startswith(text[at:]):
            raise Incomplete
        parameter, at = _read_tag(_PARAM, text, at)
        if parameter in values:
            raise NotACall
        values[parameter], at = _read_value(text, at)


def _read_tag(tag: re.Pattern, text: str, at: int) -> tuple[str, int]:
    if match := tag.match(text, at):
        return html.unescape(match[1][1:-1]), match.end()
    rest = text[at:]
    if any(begin.startswith(rest) for begin in ("<function", "<param")) or _TAG_BEGINS.fullmatch(rest):
        raise Incomplete
    raise NotACall


def _read_value(text: str, at: int) -> tuple[Value, int]:
    """Blanks around a value do not belong to it, unless they stand in CDATA."""
    parts: list[str] = []
    literal = False
    while True:
        begin, end = text.find(CDATA, at), text.find(VALUE_END, at)
        if begin == -1 and end == -1:
            raise Incomplete
        if begin == -1 or -1 < end < begin:
            parts.append(html.unescape(text[at:end].rstrip() if literal else text[at:end].strip()))
            return Value("".join(parts), literal), end + len(VALUE_END)
        stop = text.find(CDATA_END, begin)
        if stop == -1:
            raise Incomplete
        parts.append(html.unescape(text[at:begin] if literal else text[at:begin].lstrip()))
        parts.append(text[begin + len(CDATA) : stop])
        literal, at = True, stop + len(CDATA_END)


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def as_argument(value: Value, schema: Any) -> Any:
    """A value as its schema says: a text, or what its JSON stands for; a text too where it is no JSON."""
    wanted = infer_type_from_json_schema(schema)
    if wanted == "string":
        empty = not value.literal and value.text in ("null", "None")
        return None if empty and _takes_null(schema) else value.text
    if value.text in _LITERALS:
        return _LITERALS[value.text]
    try:
        argument = json.loads(value.text)
        json.dumps(argument, allow_nan=False)
    except ValueError:
        return value.text
    return argument


def _takes_null(schema: dict) -> bool:
    options = schema.get("anyOf") or schema.get("oneOf") or [schema]
    return any(option.get("type") == "null" or "null" in (option.get("type") or ()) for option in options)


class CallDetector(MiniCPM5Detector):
    """Finds calls in answers and streams. What is not a call of a known function stays text, every character of it.

    Arguments are not checked: as with other parsers, a client must expect what the model made up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = ""  # of a stream, until one can tell what it is

    def detect_and_parse(self, text: str, tools: list[Any]) -> StreamingParseResult:
        reader = type(self)()
        first, rest = reader.parse_streaming_increment(text, tools), reader.finish(tools)
        return StreamingParseResult(normal_text=first.normal_text + rest.normal_text, calls=[*first.calls, *rest.calls])

    def parse_streaming_increment(self, new_text: str, tools: list[Any]) -> StreamingParseResult:
        """Blanks are held back until it is known that no call follows: those in front of a call are not text."""
        self.held += new_text
        texts: list[str] = []
        calls: list[ToolCallItem] = []
        while True:
            start = self.held.find(OPENING)
            if start == -1:
                start = len(self.held) - self._ends_with_partial_token(self.held, OPENING)
                texts.append(self._take(len(self.held[:start].rstrip())))
                break
            try:
                name, values, end = read_call(self.held, start)
                call = self._call(name, values, tools)
            except Incomplete:
                texts.append(self._take(len(self.held[:start].rstrip())))
                break
            except NotACall:
                texts.append(self._take(start + len(OPENING)))
            else:
                texts.append(self._take(end)[:start].rstrip())
                self._append_tool_call(call, calls)
        return StreamingParseResult(normal_text="".join(texts), calls=calls)

    def finish(self, tools: list[Any]) -> StreamingParseResult:
        """What was held back is text, but for blanks behind calls."""
        rest = self._take(len(self.held))
        return StreamingParseResult(normal_text="" if self.prev_tool_call_arr and not rest.strip() else rest)

    def _take(self, count: int) -> str:
        taken, self.held = self.held[:count], self.held[count:]
        return taken

    def _call(self, name: str, values: dict[str, Value], tools: list[Any]) -> ToolCallItem:
        function = next((tool.function for tool in tools if tool.function.name == name), None)
        if function is None:
            raise NotACall
        schemas = get_schema_properties(function.parameters or {})
        arguments = {key: as_argument(value, schemas.get(key, {})) for key, value in values.items()}
        return ToolCallItem(tool_index=0, name=name, parameters=json.dumps(arguments, ensure_ascii=False))

    def supports_structural_tag(self) -> bool:
        """Forced calls are read from this form, and not from JSON."""
        return True

    def get_structural_tag(
        self,
        tools: list[Any] | None = None,
        tool_choice: Any = "auto",
        thinking_mode: bool = False,
        parallel_tool_calls: bool = True,
    ) -> Any:
        return calls_structural_tag(tools or [], tool_choice, parallel_tool_calls)

    def get_auto_tool_call_structural_tag(
        self, tools: list[Any] | None = None, thinking_mode: bool = False, parallel_tool_calls: bool = True
    ) -> Any:
        """Without a limit on calls, answers are left to the model: a grammar costs time in every step."""
        return None if parallel_tool_calls else calls_structural_tag(tools or [], "auto", parallel_tool_calls)


def begins_in_thought(original: Callable, serving: Any, request: Any) -> bool:
    """Whether what the model writes is a thought from the first token: the template has opened one.

    SGLang goes by words in the template, takes most of those with ``enable_thinking`` for thinking unless they are
    told not to, and so files answers without a thought under reasoning_content.
    """
    if not serving.reasoning_parser:
        return original(serving, request)
    detector = ReasoningParser(serving.reasoning_parser).detector
    choices = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        choices.setdefault("reasoning_effort", request.reasoning_effort)
    question = [{"role": "user", "content": ""}]
    try:
        render = serving.tokenizer_manager.tokenizer.apply_chat_template
        prompt = render(question, tokenize=False, add_generation_prompt=True, **choices)
    except Exception:  # a template of another kind, or arguments that it refuses, which SGLang tells the client
        return original(serving, request)
    return prompt.rfind(detector.think_start_token) > prompt.rfind(detector.think_end_token)


HOOKS: dict[str, Callable] = {
    "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._get_reasoning_from_request": begins_in_thought,
}


def register_detector() -> None:
    """Have SGLang read this form with CallDetector."""
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    FunctionCallParser.ToolCallParserEnum[PARSER] = CallDetector
