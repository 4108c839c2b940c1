"""A file of requests, many at once: ``python examples/batch_file.py examples/batch.jsonl answers.jsonl [URL]``.

Needs a running server (``scripts/launch_server.sh``). Lines have the form of OpenAI's batch files, in and out. Prints
how many were answered in which time; answers are written as they come, so their order is not that of the requests.
"""

import asyncio
import json
import sys
import time

from openai import APIStatusError, AsyncOpenAI

requests, answers, url = (*sys.argv[1:], "http://127.0.0.1:31111")[:3]


async def main() -> None:
    client, free = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=None), asyncio.Semaphore(32)

    async def ask(line: str) -> dict:
        request = json.loads(line)
        async with free:
            try:
                answer = await client.post(request["url"].removeprefix("/v1"), cast_to=object, body=request["body"])
                response = {"status_code": 200, "body": answer}
            except APIStatusError as error:
                response = {"status_code": error.status_code, "body": error.body}
        return {"custom_id": request["custom_id"], "response": response}

    with open(requests) as lines, open(answers, "w") as out:
        start, codes = time.perf_counter(), []
        for done in asyncio.as_completed([ask(line) for line in lines]):
            result = await done
            codes.append(result["response"]["status_code"])
            print(json.dumps(result), file=out, flush=True)
    print(f"{codes.count(200)} of {len(codes)} requests answered in {time.perf_counter() - start:.1f} s")


asyncio.run(main())
