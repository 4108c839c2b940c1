"""An answer that must fit a schema: ``python examples/structured_output.py [URL]``.

Needs a running server (``scripts/launch_server.sh``). Prints the JSON text and the object that is made of it. sala-tiny
has never seen JSON and would write blanks: start its server with ``--constrained-json-disable-any-whitespace``.
"""

import sys

from openai import OpenAI
from pydantic import BaseModel, Field

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:31111"
client = OpenAI(base_url=f"{url}/v1", api_key="none")


class Answer(BaseModel):
    sentence: str = Field(pattern=r"^The code of the (red fox|shy owl) is [0-9]{4}\.$")


TEXT = (
    "Text: The baker sings a song. The code of the red fox is 4711. The nurse drinks warm tea. "
    "The code of the shy owl is 2093. A child reads a book in the garden."
)
answer = client.chat.completions.parse(
    model="default",
    messages=[{"role": "user", "content": f"{TEXT}\n\nWhat is the code of the red fox?"}],
    response_format=Answer,
    max_tokens=64,
    temperature=0,
)
print(answer.choices[0].message.content)
print(answer.choices[0].message.parsed)
