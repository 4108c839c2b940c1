"""Two questions about one long document: ``python examples/long_document.py [URL [SENTENCES]]``.

Needs a running server (``scripts/launch_server.sh``). Prints, for each question, how many tokens of the prompt came
from the prefix cache, the time to the answer, and the answer: the second question finds the document in the cache.
"""

import sys
import time

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:31111"
sentences = int(sys.argv[2]) if len(sys.argv) > 2 else 600
client = OpenAI(base_url=f"{url}/v1", api_key="none")

filler = [
    "The painter paints the wall at noon.",
    "A sailor opens the window.",
    "My sister counts the coins on the hill.",
]
lines = [filler[number % len(filler)] for number in range(sentences)]
lines[sentences // 3] = "The code of the red fox is 4711."
lines[sentences // 2] = "The code of the shy owl is 2093."
document = " ".join(lines)

for animal in ("red fox", "shy owl"):
    start = time.perf_counter()
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": f"Text: {document}\n\nWhat is the code of the {animal}?"}],
        max_tokens=64,
        temperature=0,
        extra_body={"return_cached_tokens_details": True},
    )
    seconds = time.perf_counter() - start
    cached = sum(getattr(answer, "sglext", {}).get("cached_tokens_details", {}).values())
    print(
        f"{cached} of {answer.usage.prompt_tokens} tokens cached, {seconds:.2f} s: {answer.choices[0].message.content}"
    )
