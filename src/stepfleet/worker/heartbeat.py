"""Keeps the lease of this process alive, in a thread of its own where there is a real server.

A step that blocks the event loop must not cost the lease, so the thread has its own synchronous
connection. After a lease of that the thread says which steps run. A loop that stalls for `STALL` leases
counts as a failure of that step: the thread says so and stops renewing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import msgpack

from stepfleet.clock import Clock
from stepfleet.errors import StoreError
from stepfleet.storage.fleet import BeatCall, Fleet
from stepfleet.storage.scripts import script

logger = logging.getLogger("stepfleet.worker.heartbeat")

#: Leases for which the event loop may stall before its work counts as lost.
STALL: Final = 20
#: Leases after which a log line says that it stalls.
SLOW: Final = 1
#: What to do about a step that keeps the loop.
CURE: Final = "a step that computes or blocks belongs into a plain `def`, which gets a thread"
#: Beats per lease.
BEATS: Final = 3
#: How often in a lease the loop notes that it turns: what a log line says of it is as exact.
TURNS: Final = 10
#: ms by which Redis' clock may be ahead of what was expected, for each second of a lease: a lease that is
#: renewed has more left.
JUMP_MS: Final = 500


class Heartbeat:
    """The lease of one consumer and what its beats learn. Shared by loop and thread."""

    def __init__(
        self,
        fleet: Fleet,
        consumer: str,
        *,
        lease: float,
        describe: Callable[[], dict[str, Any]],
        running: Callable[[], str],
    ) -> None:
        self._fleet = fleet
        self.consumer = consumer
        self.lease = lease
        self._describe = describe
        #: Names the steps that run, oldest first; '' for none.
        self._running = running
        self._clock: Clock = fleet.clock
        #: Edit locks held by steps: key -> token.
        self.locks: dict[str, str] = {}
        #: Work to take over was seen by the last beat.
        self.work_was_left = False
        self.work_was_returned = False
        #: A tombstone stands at the consumer's name.
        self.buried = False
        self._gapless_since: float | None = None
        self._last_beat = 0.0
        #: By how much Redis' clock was ahead of ours, in ms.
        self._redis_ahead: float | None = None
        self._loop_seen = self._clock.steady()
        #: Leases for which the loop has not turned, as far as that was said.
        self._said = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._turning: asyncio.TimerHandle | None = None

    # -- used by the loop --------------------------------------------------------------------------

    @property
    def may_bury(self) -> bool:
        """Whether this process may take from the dead: after a full lease without a gap in its beats."""
        now = self._clock.steady()
        return (
            self._gapless_since is not None
            and now - self._gapless_since >= self.lease
            and now - self._last_beat < self.lease
        )

    @property
    def buries_until_ms(self) -> int:
        """Until when by Redis' clock this process may take from the dead; 0: not at all.

        Soon: a clock that jumps after the last beat passes it, and leases that are renewed look old.
        """
        if not self.may_bury or self._redis_ahead is None:
            return 0
        return int(self._clock.steady() * 1000 + self._redis_ahead + self.lease * JUMP_MS)

    async def start(self) -> None:
        """Write the lease, then renew it until `stop`.

        Raises:
            ConnectionLost, StoreRefused: the first beat fails.
        """
        if self._fleet.beat_call is None:
            link = self._fleet.link("beat")
            await self._beat_on(link)
            self._turns()
            self._task = asyncio.create_task(self._beats(link), name="stepfleet-heartbeat")
            return
        call = await asyncio.to_thread(self._fleet.beat_call)
        await asyncio.to_thread(self._beat, call)
        self._turns()
        self._thread = threading.Thread(
            target=self._thread_beats, args=(call,), name="stepfleet-heartbeat", daemon=True
        )
        self._thread.start()

    async def stop(self) -> None:
        """Stop renewing."""
        self._stop.set()
        if self._turning is not None:
            self._turning.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 5.0)

    def _turns(self) -> None:
        """Note that the loop turns, now and again: in no task, as each of them may wait for Redis."""
        self._loop_seen = self._clock.steady()
        again = self.lease / TURNS
        self._turning = asyncio.get_running_loop().call_later(again, self._turns)

    # -- one beat ----------------------------------------------------------------------------------

    def _arguments(self) -> tuple[list[str], list[Any]]:
        locks = dict(self.locks)
        keys = [self._fleet.keys.leases, self._fleet.keys.workers, *locks]
        about = msgpack.packb(self._describe())
        return keys, [self.consumer, int(self.lease * 1000), about, *locks.values()]

    def _learn(self, reply: list[Any]) -> None:
        now = self._clock.steady()
        if reply[0] == 0:
            self.buried = True
            self._gapless_since = None
            return
        _, redis_ms, ran_out, tombstones, returned = reply
        self._clock.saw_redis(int(redis_ms))
        # A clock that jumped makes every lease look old: its owners get the time to renew it.
        ahead = int(redis_ms) - now * 1000
        jumped = self._redis_ahead is not None and ahead - self._redis_ahead > self.lease * JUMP_MS
        self._redis_ahead = ahead
        if self._gapless_since is None or now - self._last_beat > self.lease or jumped:
            self._gapless_since = now
        self._last_beat = now
        self.work_was_left = bool(ran_out or tombstones)
        self.work_was_returned = bool(returned)

    def _beat(self, call: BeatCall) -> None:
        keys, args = self._arguments()
        self._learn(call(script("beat"), keys, args))

    def _thread_beats(self, call: BeatCall) -> None:
        while not self._stop.wait(self.lease / BEATS):
            if self.buried:
                return
            if self._is_stalled():
                continue
            try:
                self._beat(call)
            except StoreError as error:
                logger.debug("a beat failed, the next one is due: error=%s", error)

    def _is_stalled(self) -> bool:
        """Tell whether a step has kept the event loop for too long; say once that one keeps it, and that."""
        silent = self._clock.steady() - self._loop_seen
        leases = next((some for some in (STALL, SLOW) if silent > some * self.lease), 0)
        was_said, self._said = self._said, leases
        if leases > was_said:
            running = self._running() or "nothing"
            if leases == STALL:
                text, level = "its deliveries go to others", logging.ERROR
            else:
                text, level = f"nothing else goes on in this process; {CURE}", logging.WARNING
            logger.log(
                level,
                "the event loop has not turned for %.0f s, %s: running=%s",
                silent,
                text,
                running,
            )
        return leases == STALL

    async def _beat_on(self, link: Any) -> None:
        keys, args = self._arguments()
        self._learn(await link.script(script("beat"), keys, args))

    async def _beats(self, link: Any) -> None:
        while not self.buried:
            await asyncio.sleep(self.lease / BEATS)
            if self._is_stalled():
                continue
            try:
                await self._beat_on(link)
            except StoreError as error:
                logger.debug("a beat failed, the next one is due: error=%s", error)
