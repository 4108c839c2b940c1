"""The model calls a function and answers from what it returns: ``python examples/tools.py [URL]``.

Needs a running server (``scripts/launch_server.sh``). Prints the call with its result, and the answer. The weights of
sala-tiny were not trained on tools: a grammar holds it to a call, and its answer names another number.
"""

import json
import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:31111"
client = OpenAI(base_url=f"{url}/v1", api_key="none")

CODES = {"red fox": 4711, "shy owl": 2093}
ANIMAL = {"type": "string", "enum": list(CODES)}
PARAMETERS = {"type": "object", "properties": {"animal": ANIMAL}, "required": ["animal"]}
FUNCTION = {"name": "get_code", "description": "The code of an animal.", "parameters": PARAMETERS}
options = {
    "model": "default",
    "tools": [{"type": "function", "function": FUNCTION}],
    "max_tokens": 256,
    "temperature": 0,
}

messages = [{"role": "user", "content": "What is the code of the red fox?"}]
answer = client.chat.completions.create(**options, messages=messages, tool_choice="required")
message = answer.choices[0].message
messages.append(message.model_dump(exclude_none=True))
for call in message.tool_calls:
    arguments = json.loads(call.function.arguments)
    result = json.dumps({"code": CODES[arguments["animal"]]})
    print(f"{call.function.name}({arguments}) returns {result}")
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
answer = client.chat.completions.create(**options, messages=messages)
print(answer.choices[0].message.content)
