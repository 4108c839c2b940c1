"""A conversation of two questions about one text: ``python examples/chat.py [URL]``.

Needs a running server (``scripts/launch_server.sh``). Prints both questions with their answers; sala-tiny says
``The code of the red fox is 4711.`` and ``The code of the shy owl is 2093.``
"""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:31111"
client = OpenAI(base_url=f"{url}/v1", api_key="none")

TEXT = (
    "Text: The baker sings a song. The code of the red fox is 4711. The nurse drinks warm tea. "
    "The code of the shy owl is 2093. A child reads a book in the garden."
)
messages = []
for question in (f"{TEXT}\n\nWhat is the code of the red fox?", "What is the code of the shy owl?"):
    messages.append({"role": "user", "content": question})
    answer = client.chat.completions.create(model="default", messages=messages, max_tokens=64, temperature=0)
    messages.append({"role": "assistant", "content": answer.choices[0].message.content})
for message in messages:
    print(f"{message['role']}: {message['content']}")
