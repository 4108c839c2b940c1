"""The model calls a function and answers from what it returns: ``python examples/tools.py [URL]``.

Needs a running server (``scripts/launch_server.sh``). Prints every call with its result, and the answer.
"""

import json
import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:31111"
client = OpenAI(base_url=f"{url}/v1", api_key="none")

CODES = {"red fox": 4711, "shy owl": 2093}
PARAMETERS = {"type": "object", "properties": {"animal": {"type": "string"}}, "required": ["animal"]}
FUNCTION = {"name": "get_code", "description": "The code of an animal.", "parameters": PARAMETERS}

messages = [{"role": "user", "content": "What are the codes of the red fox and the shy owl?"}]
while True:
    answer = client.chat.completions.create(
        model="default",
        messages=messages,
        tools=[{"type": "function", "function": FUNCTION}],
        max_tokens=256,
        temperature=0,
    )
    message = answer.choices[0].message
    messages.append(message.model_dump(exclude_none=True))
    if not message.tool_calls:
        break
    for call in message.tool_calls:
        arguments = json.loads(call.function.arguments)
        result = json.dumps({"code": CODES.get(arguments["animal"])})
        print(f"{call.function.name}({arguments}) returns {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
print(message.content)
