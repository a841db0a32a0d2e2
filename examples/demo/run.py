"""The demo: a fleet indexes Python's standard library and loses a worker on the way.

`make demo`, or `python examples/demo/run.py --help`. Exit code 0 only if everything was as promised.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleet import (
    LEASE,
    NAMESPACE,
    SWEEP,
    Recovery,
    WorkerProcess,
    check_alive,
    count_taken_over,
    kill_one,
    project_folder,
    redis_server,
    wait_until_ready,
    watch_recovery,
    worker_processes,
)
from indexing import list_files, parse_file, write_index
from progress import Board, ProgressBar
from redis.asyncio import Redis
from workflow import Answer, FileDone, IndexLibrary, LibraryIndex

from stepfleet import Client
from stepfleet.errors import SettingsError

#: The worker is killed when this part of the files is done: the fleet is busy by then.
KILL_AT = 0.25
#: Seconds for the run, on a slow machine.
TIMEOUT = 300.0


@dataclass
class Seen:
    """Everything the demo has seen, for the report."""

    answer: Answer
    board: Board
    recovery: Recovery | None
    seconds: float


def main() -> int:
    options = _options()
    # A polite kill, or a closed terminal, ends the demo as Ctrl-C does: through every `finally`.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with project_folder(keep=options.keep) as folder:
            print(
                "stepfleet demo: index Python's standard library on a fleet that loses a worker\n"
            )
            with (
                redis_server(folder) as url,
                worker_processes(url, folder, options.workers) as workers,
            ):
                seen = asyncio.run(_watched_run(url, folder, workers, options))
            return _report(seen, workers, folder, options)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: server and workers are ended", file=sys.stderr)
        return 130


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=_at_least(1), default=3, help="worker processes [3]")
    parser.add_argument("--files", type=_at_least(1), help="index only so many files")
    parser.add_argument("--no-kill", action="store_true", help="let all workers live")
    parser.add_argument("--query", default="Queue", help="the symbol to look for [Queue]")
    parser.add_argument("--keep", action="store_true", help="keep the index and the workers' logs")
    options = parser.parse_args()
    if options.workers == 1 and not options.no_kill:
        parser.error("with one worker nobody is left after the kill: add --no-kill")
    return options


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"at least {least}")
        return value

    return number


async def _watched_run(
    url: str, folder: Path, workers: list[WorkerProcess], options: argparse.Namespace
) -> Seen:
    async with Redis.from_url(url) as redis, Client(url, namespace=NAMESPACE) as client:
        await wait_until_ready(redis, workers)
        print(f"  python {platform.python_version()}, redis in {folder}")
        for worker in workers:
            print(f"  {worker} is ready")
        print()
        begin = time.monotonic()
        handler = await client.start(
            LibraryIndex(timeout=TIMEOUT),
            start_event=IndexLibrary(
                index=str(folder / "index.json"), query=options.query, limit=options.files
            ),
        )
        board, bar = Board(), ProgressBar(sys.stdout)
        rescue: asyncio.Task[Recovery] | None = None
        try:
            async for event in handler.stream_events():
                board.add(handler.last_sequence, event)
                bar.show(board.done, board.total)
                if isinstance(event, FileDone) and board.done == board.total:
                    bar.say("all files are parsed, now they are joined")
                check_alive(workers)
                if rescue is None and not options.no_kill and _is_busy(board, workers):
                    rescue = asyncio.create_task(_kill_and_watch(redis, workers, bar))
            answer = await handler
            seconds = time.monotonic() - begin
            return Seen(answer, board, await rescue if rescue else None, seconds)
        finally:
            bar.close()
            if rescue is not None:
                rescue.cancel()


def _is_busy(board: Board, workers: list[WorkerProcess]) -> bool:
    return board.done >= board.total * KILL_AT and len(board.files_by_pid()) == len(workers)


async def _kill_and_watch(redis: Redis, workers: list[WorkerProcess], bar: ProgressBar) -> Recovery:
    recovery = await kill_one(redis, workers)
    held = len(recovery.held)
    bar.say(f"{recovery.victim} is killed (SIGKILL) while it holds {held} deliveries")
    await watch_recovery(redis, recovery)
    bar.say(f"the others have done all {held} of them, {recovery.seconds:.2f} s after the kill")
    return recovery


def _report(
    seen: Seen, workers: list[WorkerProcess], folder: Path, options: argparse.Namespace
) -> int:
    totals, recovery = seen.answer.totals, seen.recovery
    print(
        f"\n{totals.files:,d} files with {totals.lines:,d} lines in {seen.seconds:.1f} s: "
        f"{totals.classes:,d} classes, {totals.functions:,d} functions; "
        f"{totals.unparsed} files do not parse"
    )
    print(f"\nWhere is {options.query} defined?")
    for found in seen.answer.definitions:
        print(f"  {found.kind:8}  {found.name:24}  {found.path}:{found.line}")
    if not seen.answer.definitions:
        print("  nowhere")
    files = seen.board.files_by_pid()
    print("\nWho parsed how many files?")
    for worker in workers:
        print(f"  {worker}  {files[worker.pid]:5,d}  {_fate(worker)}".rstrip())
    if recovery is not None:
        print(
            f"\nHow long did recovery take?\n"
            f"  {recovery.seconds:.2f} s from the kill to the commit of the last of the "
            f"{len(recovery.held)} deliveries that {recovery.victim} held\n"
            f"  (the others may take them after {LEASE:g} s of silence, and look every {SWEEP:g} s)"
        )
    print("\nIs the index right?")
    begin = time.monotonic()
    alone = write_index(map(parse_file, list_files(options.files)), folder / "alone.json")
    print(f"  sha256 {totals.sha256}  by the fleet, in {seen.seconds:.1f} s")
    print(f"  sha256 {alone.sha256}  in one process, in {time.monotonic() - begin:.1f} s")
    if options.keep:
        print(f"\nThe index and the workers' logs are in {folder}")
    promises = {
        "the index equals that of one process": totals == alone,
        f"all {options.workers} processes have parsed files": set(files)
        == {worker.pid for worker in workers},
        "every file is counted once": files.total() == totals.files,
    }
    if not options.no_kill:
        held = len(recovery.held) if recovery is not None else 0
        promises |= {
            "a worker was killed while it held deliveries": held > 0,
            "the others took over all that it held": 0
            < held
            <= sum(map(count_taken_over, workers)),
        }
    return _verdict(promises, seen)


def _fate(worker: WorkerProcess) -> str:
    if worker.killed:
        return "killed"
    match count_taken_over(worker):
        case 0:
            return ""
        case 1:
            return "took over 1 delivery"
        case count:
            return f"took over {count} deliveries"


def _verdict(promises: dict[str, bool], seen: Seen) -> int:
    broken = [promise for promise, kept in promises.items() if not kept]
    if broken:
        print("\nNot as promised. This is not true:")
        for promise in broken:
            print(f"  {promise}")
        return 1
    files = f"{seen.answer.totals.files:,d} files"
    if seen.recovery is None:
        print(f"\nAs promised: {files} on several processes, each counted once, the same index.")
    else:
        print(
            f"\nAs promised: {files}, a worker killed while it held {len(seen.recovery.held)} "
            "deliveries,\nnothing lost, nothing counted twice, the same index byte for byte."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
