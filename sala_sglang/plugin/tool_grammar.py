"""The grammar of tool calls, for requests that force one, limit them to one, or ask for strict arguments."""

from typing import Any

from sglang.srt.function_call.utils import get_schema_properties, infer_type_from_json_schema
from xgrammar import StructuralTag

# A text without what has to stand in CDATA, and without blanks around it.
_PLAIN_TEXT = r"([^<& \t\n\r]([^<&\n\r]*[^<& \t\n\r])?)?"
_CDATA: dict = {"type": "tag", "begin": "<![CDATA[", "content": {"type": "any_text"}, "end": "]]>"}
_TEXT: dict = {"type": "or", "elements": [{"type": "regex", "pattern": _PLAIN_TEXT}, _CDATA]}


def calls_structural_tag(tools: list[Any], choice: Any, parallel: bool) -> StructuralTag:
    """xgrammar's tag for calls of ``tools``.

    choice: of the request: "required" and a named function allow calls alone, "auto" also text. parallel: whether
    more than one call may follow.
    """
    named = None if isinstance(choice, str) else choice.function.name
    tags = [_call(tool.function) for tool in tools if named in (None, tool.function.name)]
    form: dict
    if choice == "auto":
        form = {"type": "triggered_tags", "triggers": ["<function name="], "tags": tags}
    else:
        form = {"type": "tags_with_separator", "separator": "\n", "tags": tags, "at_least_one": True}
    return StructuralTag.model_validate({"format": form | {"stop_after_first": not parallel}})


def _call(function: Any) -> dict:
    parameters = function.parameters or {}
    required = parameters.get("required", ())
    elements = []
    for name, schema in get_schema_properties(parameters).items():
        content = _value(schema, parameters)
        element = {"type": "tag", "begin": f'<param name="{name}">', "content": content, "end": "</param>"}
        elements.append(element if name in required else {"type": "optional", "content": element})
    content = {"type": "sequence", "elements": elements} if elements else {"type": "const_string", "value": ""}
    return {"type": "tag", "begin": f'<function name="{function.name}">', "content": content, "end": "</function>"}


def _value(schema: Any, parameters: dict) -> dict:
    """Of a parameter: texts as they are, everything else as JSON."""
    if infer_type_from_json_schema(schema) != "string":
        definitions = {name: parameters[name] for name in ("$defs", "definitions") if name in parameters}
        whole = definitions | schema if isinstance(schema, dict) else schema
        return {"type": "json_schema", "json_schema": whole, "max_whitespace_cnt": 1}
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if choices and all(isinstance(choice, str) for choice in choices):
        return {"type": "or", "elements": [{"type": "const_string", "value": _written(choice)} for choice in choices]}
    return _TEXT


def _written(text: str) -> str:
    return f"<![CDATA[{text}]]>" if set(text) & set("<&\n\r") or text != text.strip() else text
