"""A run goes on although whoever started it is gone: by its id, or by a dictionary of its context."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from tests.support.fleet import ROOT, TestFleet

PATIENCE = 60.0

#: Starts a run, waits until one of its steps waits, keeps its context, cancels it, and goes.
PRODUCER = """
import asyncio, json, sys
from stepfleet import Client
from tests.support.flows import Open

async def main():
    async with Client(sys.argv[1]) as client:
        handler = Open(runtime=client, timeout=None).run(count=4)
        reader = client.connection().reader
        while len((await reader.waits(handler.run_id)).open) < 1:
            await asyncio.sleep(0.02)
        data = handler.ctx.to_dict()
        await handler.cancel_run()
        print(json.dumps([handler.run_id, data]))

asyncio.run(main())
"""

#: Goes on, by the id alone or by the dictionary, and answers.
ANOTHER = """
import asyncio, json, sys
from stepfleet import Client, Context
from tests.support.flows import Answer, Open

async def main():
    run_id, data = json.loads(sys.stdin.read())
    async with Client(sys.argv[1]) as client:
        if sys.argv[2] == "id":
            handler = await client.resume(run_id, workflow=Open)
        else:
            flow = Open(runtime=client, timeout=None)
            handler = flow.run(ctx=Context.from_dict(flow, data))
        await handler.send_event(Answer())
        print(json.dumps([handler.run_id, await handler]))

asyncio.run(main())
"""


async def program(text: str, *args: str, given: str = "") -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", text, *args), cwd=ROOT, stdin=PIPE, stdout=PIPE
    )
    async with asyncio.timeout(PATIENCE):
        output, _ = await process.communicate(given.encode())
    assert process.returncode == 0
    return output.decode()


async def test_another_process_goes_on_from_a_run_of_a_producer_that_is_gone(
    tmp_path: Path,
) -> None:
    with TestFleet(tmp_path) as fleet:
        fleet.start(2)
        kept = await program(PRODUCER, fleet.url)
        run_id = json.loads(kept)[0]
        by_dictionary, first = json.loads(await program(ANOTHER, fleet.url, "dict", given=kept))
        by_id, second = json.loads(await program(ANOTHER, fleet.url, "id", given=kept))
        assert first == second == "ended"
        assert by_id == f"{run_id}~1"
        assert by_dictionary not in (run_id, by_id)
        fleet.wait_until_tidy([run_id, by_id, by_dictionary])
