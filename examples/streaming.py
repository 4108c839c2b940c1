"""An answer that appears while it is written: ``python examples/streaming.py [URL]``.

Needs a running server (``scripts/launch_server.sh``). Prints the answer as it comes, then the time to its first part
and the mean time of a further token.
"""

import sys
import time

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:31111"
client = OpenAI(base_url=f"{url}/v1", api_key="none")

start = time.perf_counter()
stream = client.chat.completions.create(
    model="default",
    messages=[{"role": "user", "content": "Tell me a story."}],
    max_tokens=64,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
times, tokens = [], 0
for event in stream:
    if event.choices and event.choices[0].delta.content:
        times.append(time.perf_counter() - start)
        print(event.choices[0].delta.content, end="", flush=True)
    if event.usage:
        tokens = event.usage.completion_tokens
each = (times[-1] - times[0]) / max(1, tokens - 1)
print(f"\n{tokens} tokens: the first after {times[0] * 1000:.0f} ms, each further one {each * 1000:.1f} ms")
