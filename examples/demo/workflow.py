"""Indexes the Python standard library: list files -> parse each -> join -> answer a query."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from indexing import Definition, FileFacts, Totals, find, list_files, parse_file, write_index

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step


class IndexLibrary(StartEvent):
    #: Where to write the index: on a disk that the workers share.
    index: str
    #: The symbol to look for.
    query: str
    #: How many files; None: all.
    limit: int | None = None


class SourceFile(Event):
    path: str


class ParsedFile(Event):
    facts: FileFacts


class IndexWritten(Event):
    totals: Totals


class Answer(StopEvent):
    index: str
    totals: Totals
    definitions: list[Definition]


class FilesListed(Event):
    """Tells readers of the run how much there is to do."""

    count: int


class FileDone(Event):
    """Tells readers of the run which process has parsed a file."""

    path: str
    pid: int


class LibraryIndex(Workflow):
    @step
    async def list_files(self, ctx: Context, ev: IndexLibrary) -> SourceFile | None:
        paths = await asyncio.to_thread(list_files, ev.limit)
        await ctx.store.set("start", {"index": ev.index, "query": ev.query, "files": len(paths)})
        ctx.write_event_to_stream(FilesListed(count=len(paths)))
        for path in paths:
            ctx.send_event(SourceFile(path=path))

    # Not async: parsing keeps a CPU busy, so it runs in a thread beside the worker's own loop.
    @step(num_workers=64)
    def parse(self, ctx: Context, ev: SourceFile) -> ParsedFile:
        facts = parse_file(ev.path)
        ctx.write_event_to_stream(FileDone(path=ev.path, pid=os.getpid()))
        return ParsedFile(facts=facts)

    @step
    async def join(self, ctx: Context, ev: ParsedFile) -> IndexWritten | None:
        start = await ctx.store.get("start")
        parsed = ctx.collect_events(ev, [ParsedFile] * start["files"])
        if parsed is None:
            return None
        facts = [one.facts for one in parsed]
        return IndexWritten(
            totals=await asyncio.to_thread(write_index, facts, Path(start["index"]))
        )

    @step
    async def answer(self, ctx: Context, ev: IndexWritten) -> Answer:
        start = await ctx.store.get("start")
        found = await asyncio.to_thread(find, Path(start["index"]), start["query"])
        return Answer(index=start["index"], totals=ev.totals, definitions=found)
