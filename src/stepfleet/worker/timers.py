"""Fires what is due by Redis' clock: back-offs, waits, deadlines. Any worker may: the timer is the fence."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from math import inf
from typing import Any, Final, cast

from stepfleet.codec import Codec, TypeRegistry
from stepfleet.core import endings, history
from stepfleet.core.commit import Commit, DropTimer, Emit, Has, Save, TimerFence
from stepfleet.errors import DecodeError, StoreError, StoreRefused
from stepfleet.storage.committer import Committer
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.link import Link
from stepfleet.storage.reader import RunReader, damage
from stepfleet.storage.scripts import script
from stepfleet.wire import Expiry, Promotion, decode_record, decode_timer, encode_timer
from stepfleet.worker.outage import Outage
from stepfleet.worker.system import answered

logger = logging.getLogger("stepfleet.worker.timers")

#: Seconds between two looks, if nothing is due earlier.
LOOK: Final = 0.5
#: Timers fired at once.
MOST: Final = 200


class Timers:
    """Looks for due timers and commits what they mean."""

    def __init__(self, fleet: Fleet, link: Link, committer: Committer, reader: RunReader) -> None:
        self._fleet = fleet
        self._link = link
        self._committer = committer
        self._reader = reader
        self._codec = Codec(TypeRegistry())
        self._is_near = asyncio.Event()
        self._next_look = 0.0

    def expect(self, seconds: float) -> None:
        """Look by then: something that this process has set is due in so many seconds."""
        if self._fleet.clock.steady() + seconds < self._next_look:
            self._is_near.set()

    async def run(self, outage: Outage) -> None:
        """Fire whatever gets due."""
        while True:
            self._is_near.clear()
            self._next_look = inf
            try:
                until = await self.fire()
                outage.over()
            except StoreError as error:
                await outage.pause(error)
                continue
            pause = LOOK if until is None else min(LOOK, until)
            self._next_look = self._fleet.clock.steady() + pause
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._is_near.wait()

    async def fire(self) -> float | None:
        """Fire what is due and return the seconds until the next timer, None if there is none.

        Raises:
            ConnectionLost, StoreRefused: as `Link.call`.
        """
        keys = self._fleet.keys
        now, due, overdue, until = await self._link.script(
            script("due"), [keys.timers, keys.timer_data, keys.live], [MOST]
        )
        self._fleet.clock.saw_redis(int(now))
        # All at once: one after the other, a thousand that are due at the same time took 2 s.
        answers = await asyncio.gather(
            *map(self._fire_or_bury, due[::2], due[1::2]),
            *map(self._end_or_forget, overdue),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        # What cannot be fired stays due: it is looked at again a little later, not at once.
        if any(answers):
            return 0.0
        return None if until < 0 else until / 1000

    async def _fire_or_bury(self, member: bytes, data: bytes) -> bool:
        """Fire a timer and tell whether that was possible."""
        try:
            await self._fire(member.decode(), data)
        except UnicodeDecodeError:
            await self._bury(member, data)
        except (DecodeError, StoreRefused, ValueError) as error:
            # One run that cannot be read must not stop the timers of the others.
            logger.warning("timer=%s: cannot be fired here: %s", member.decode(), error)
            if "WRONGTYPE" in str(error):
                await self._bury(member, data)
        else:
            return True
        return False

    async def _end_or_forget(self, run_id: bytes) -> bool:
        """End a run whose deadline has passed."""
        try:
            await fire_deadline(run_id.decode(), self._reader, self._committer, self._codec)
        except UnicodeDecodeError:
            await self._link.call("ZREM", self._fleet.keys.live, run_id)
        return True

    async def _fire(self, member: str, data: bytes) -> None:
        run_id = member.partition("/")[0]
        fence = TimerFence(member)
        try:
            timer = decode_timer(data)
        except DecodeError as error:
            logger.error("run_id=%s timer=%s: %s", run_id, member, error)  # noqa: TRY400 - the message says it all
            await self._committer.commit(Commit(run_id, fence))
            return
        if isinstance(timer, Promotion):
            emit = Emit(timer.route, ((timer.delivery, timer.record),), awaitable=False)
            commit = _with_its_row(Commit(run_id, fence, [emit]), timer.record)
            answer = await self._committer.commit(commit)
            if answer.word == "broken":
                await self._bury(member.encode(), data)
            elif answer.word == "parking":
                save = Save(timer.delivery, timer.route.label, timer.record)
                await self._committer.commit(Commit(run_id, fence, [save]))
            return
        await self._expire(run_id, fence, timer)

    async def _expire(self, run_id: str, fence: TimerFence, timer: Expiry) -> None:
        waiter = await self._reader.waiter(run_id, timer.waiter)
        drop = Commit(run_id, fence, [DropTimer(fence.member)])
        if waiter is None:
            answer = await self._committer.commit(drop)
        else:
            words = answered(waiter._replace(timer=""), ["time-out", waiter.waiter_id])
            commit = Commit(run_id, fence, words, [Has(timer.waiter)])
            answer = await self._committer.commit(_with_its_row(commit, waiter.record))
            if answer.word in ("conflict", "parking"):
                answer = await self._committer.commit(drop)
        if answer.word == "broken":
            await self._bury(fence.member.encode(), encode_timer(timer))

    async def _bury(self, member: bytes, data: bytes) -> None:
        """Take the timer of a run with a damaged key to the dead letters, or it would be due for ever."""
        keys, name = self._fleet.keys, member.decode("utf-8", "replace")
        run_id = name.partition("/")[0]
        logger.error(
            "run_id=%s timer=%s: dead letter, a key of the run has a wrong type", run_id, name
        )
        limit = ("MAXLEN", "~", self._fleet.bounds.dead_limit)
        cure = damage(run_id)
        reason = f"a key of the run is damaged: {cure}"
        letter = ("run", run_id, "timer", name, "reason", reason, "record", data)
        await self._link.call("XADD", keys.dead, *limit, "*", *letter)
        await self._link.calls([("ZREM", keys.timers, member), ("HDEL", keys.timer_data, member)])
        await self._committer.commit(endings.damaged(run_id, "", "", cure, self._codec))


def _with_its_row(commit: Commit, record: bytes) -> Commit:
    """Return a commit with its row of the history; what only newer code can read goes on without one."""
    try:
        return history.emitted(commit, decode_record(record), None)
    except DecodeError:
        return commit


async def fire_deadline(run_id: str, reader: RunReader, committer: Committer, codec: Codec) -> None:
    """End a run whose deadline has passed; says what it was waiting for."""
    try:
        pending, held = await reader.pending(run_id), await reader.held(run_id)
        collected = await reader.collected(run_id)
        active, waiting = endings.what_it_waits_for(pending, held, collected)
    except (StoreRefused, ValueError, IndexError) as error:
        active, waiting = [], f"what it waits for cannot be read: {error}"
    # A pipeline, since a record of a wrong type is no reason to stop here: the commit finds it too.
    (found,) = await reader.link.calls([("HMGET", reader.keys.run(run_id), "timeout", "workflow")])
    timeout, name = cast("list[Any]", found) if isinstance(found, list) else (None, None)
    seconds = int(timeout) / 1000 if timeout and timeout.isdigit() else 0.0
    workflow = (name or b"").decode("utf-8", "replace")
    ended = endings.timed_out(run_id, workflow, seconds, active, waiting, codec)
    answer = await committer.commit(ended)
    if answer.word == "broken":
        cure = damage(run_id)
        answer = await committer.commit(endings.damaged(run_id, workflow, "", cure, codec))
    if answer.word == "broken":
        # It cannot be ended, and would be overdue for ever.
        await reader.link.call("ZREM", reader.keys.live, run_id)
