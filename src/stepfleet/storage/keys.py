"""Every Redis key of stepfleet: its name, its type, who owns it and when it goes. Layer: storage.

All keys of one namespace and partition share the hash tag `{namespace:partition}`, so that every
script touches one slot. `docs/explanation/keyspace.md` is this file as a table.
"""

from __future__ import annotations

import re
from typing import Final

#: The one consumer group of every step stream.
GROUP: Final = "workers"

#: The step-stream "event type" under which a workflow's workers receive what is decided in Python.
SYSTEM: Final = "__sys"

#: What follows a run's id in the names of its keys -> their type. `buf` and `scope` have lists below them.
TYPES_OF_RUNS: Final = {
    "": "hash",
    **dict.fromkeys(("open", "buf", "scope", "wait", "sent", "store", "parked"), "hash"),
    **dict.fromkeys(("hold", "pair", "batch", "inbox", "stage", "checkpoints"), "list"),
    **dict.fromkeys(("events", "history"), "stream"),
    **dict.fromkeys(("children", "keys"), "set"),
    "lock": "string",
    "ops": "zset",
}

#: First part of the name of a workflow's key, and how many follow it -> its type. Streams have any number.
_TYPES_OF_WORKFLOWS: Final = {
    ("wf", 1): "hash",
    ("lim", 2): "hash",
    ("lim", 3): "list",
    ("runs", 1): "set",
    ("runs", 2): "list",
}

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]")
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def escape(name: str) -> str:
    """Return `name` with every character outside `[A-Za-z0-9_.-]` written as `.xHH.`."""
    return _UNSAFE.sub(lambda match: f".x{ord(match[0]):x}.", name)


def run_of(name: str) -> tuple[str, str | None]:
    """Return the run that a key is of, and the type that it has to have: None for a strange one."""
    run_id, _, rest = name.partition(":run:")[2].partition(":")
    kind, *parts = rest.split(":")
    if (kind == "scope" and len(parts) > 1) or (kind == "buf" and parts[-1:] == ["events"]):
        return run_id, "list"
    return run_id, TYPES_OF_RUNS.get(kind)


def types_of_partition(keys: Keys) -> dict[str, str]:
    """Return the keys that a partition has one of, with their types."""
    return {
        **dict.fromkeys((keys.leases, keys.timers, keys.live, keys.ended), "zset"),
        **dict.fromkeys((keys.workers, keys.timer_data), "hash"),
        **dict.fromkeys((keys.ends, keys.dead), "stream"),
        keys.tidy: "list",
    }


def type_of_workflow(name: str) -> str | None:
    """Return the type that a key of a workflow has to have; None for a strange one."""
    kind, *parts = name.partition("}:")[2].split(":")
    return "stream" if kind == "s" else _TYPES_OF_WORKFLOWS.get((kind, len(parts)))


class Keys:
    """Names the keys of one partition of one namespace.

    Raises:
        ValueError: the namespace has characters outside `[A-Za-z0-9_.-]` or more than 64 of them.
    """

    def __init__(self, namespace: str, partition: int = 0) -> None:
        if not _NAMESPACE.fullmatch(namespace):
            raise ValueError(
                f"namespace {namespace!r} is not 1 to 64 characters of A-Z a-z 0-9 _ . -"
            )
        self.namespace = namespace
        self.tag = tag = f"{{{namespace}:{partition}}}"
        #: zset, consumer -> lease end in ms of Redis time; 0: `returned`; negative: tombstone of a
        #: dead one.
        self.leases = f"{tag}:leases"
        #: hash, consumer -> what the worker tells of itself; removed when it leaves, else by the
        #: janitor.
        self.workers = f"{tag}:workers"
        #: zset, member (begins with the run id) -> when it is due; removed when it fires.
        self.timers = f"{tag}:timers"
        #: hash, member -> what to do when it is due.
        self.timer_data = f"{tag}:timers:data"
        #: zset, live run -> its deadline (+inf: none yet).
        self.live = f"{tag}:live"
        #: zset, ended run -> its end; older than the retention: removed by the janitor.
        self.ended = f"{tag}:ended"
        #: stream of (run, status) of every ended run, bounded.
        self.ends = f"{tag}:ends"
        #: stream of dead letters, bounded.
        self.dead = f"{tag}:dead"
        #: list of ended runs whose further keys the janitor still has to expire.
        self.tidy = f"{tag}:tidy"
        self._run = f"{tag}:run:"

    # -- of a workflow -----------------------------------------------------------------------------

    def stream(self, workflow: str, event_type: str, step: str) -> str:
        """Stream of the events of one type for one step (or, without a step, of the system)."""
        if not step:
            return f"{self.tag}:s:{workflow}:{event_type}"
        return f"{self.tag}:s:{workflow}:{event_type}:{step}"

    def workflow(self, workflow: str) -> str:
        """Hash, code digest -> definition (routes, quotas, start type, time-out), written by workers."""
        return f"{self.tag}:wf:{workflow}"

    def gauge(self, workflow: str, step: str) -> str:
        """Hash: places of a step that are reserved for runs being woken; `:queue` (list) beside it."""
        return f"{self.tag}:lim:{workflow}:{step}"

    def places(self, workflow: str) -> tuple[str, str]:
        """Set of the live runs that have a place under a limit on runs, and list of those that wait for one."""
        key = f"{self.tag}:runs:{workflow}"
        return key, f"{key}:queue"

    # -- of a run: all expire `retention` after its end
    # ---------------------------------------------

    def run(self, run_id: str) -> str:
        """Hash: status, workflow, times, public sequence, slot counters, open waiters, result."""
        return self._run + run_id

    def open(self, run_id: str) -> str:
        """Hash, delivery -> where it is: the index of the run's pending work (held ones are in `hold`)."""
        return f"{self._run}{run_id}:open"

    def hold(self, run_id: str, step: str) -> str:
        """List of the deliveries that wait for a `num_workers` slot of one step."""
        return f"{self._run}{run_id}:hold:{step}"

    def buffer(self, run_id: str, name: str) -> tuple[str, str]:
        """Hash (version, counts by type) and list (events) of one collect buffer."""
        key = f"{self._run}{run_id}:buf:{name}"
        return key, f"{key}:events"

    def scope(self, run_id: str, scope: str) -> str:
        """Hash: how much is pending in the scope of a returned list, and what it emits at its end."""
        return f"{self._run}{run_id}:scope:{scope}"

    def gathered(self, run_id: str, scope: str, step: str) -> str:
        """List of the events of a scope that one step collects."""
        return f"{self._run}{run_id}:scope:{scope}:{step}"

    def partners(self, run_id: str, step: str, event_type: str, scope: str) -> str:
        """List of the events of one type that wait for others to be joined with; '' for no scope."""
        return f"{self._run}{run_id}:pair:{step}:{event_type}:{scope}"

    def batch(self, run_id: str, delivery: str) -> str:
        """List of the events that one delivery of a joining step takes."""
        return f"{self._run}{run_id}:batch:{delivery}"

    def wait(self, run_id: str) -> str:
        """Hash, waiter -> requirement, suspended delivery, journal."""
        return f"{self._run}{run_id}:wait"

    def inbox(self, run_id: str) -> str:
        """List of the last events that nobody accepted or awaited."""
        return f"{self._run}{run_id}:inbox"

    def sent(self, run_id: str, delivery: str) -> str:
        """Hash of the early effects of an open delivery; erased by the commit that settles it."""
        return f"{self._run}{run_id}:sent:{delivery}"

    def stage(self, run_id: str, delivery: str, step: str) -> str:
        """List of the deliveries of a wide result on its way; becomes (part of) the hold list."""
        return f"{self._run}{run_id}:stage:{delivery}:{step}"

    def store(self, run_id: str) -> str:
        """Hash, top-level key of the context store -> version and value."""
        return f"{self._run}{run_id}:store"

    def lock(self, run_id: str) -> str:
        """String with the token of the `edit_state` in progress; expires with its lease."""
        return f"{self._run}{run_id}:lock"

    def events(self, run_id: str) -> str:
        """Stream of the public events, created by the first one."""
        return f"{self._run}{run_id}:events"

    def history(self, run_id: str) -> str:
        """Stream of rows about each commit, of a run that keeps a history."""
        return f"{self._run}{run_id}:history"

    def operations(self, run_id: str) -> str:
        """Zset of the last operation ids of clients."""
        return f"{self._run}{run_id}:ops"

    def parked(self, run_id: str) -> str:
        """Hash, delivery -> stream label and record: work kept when the run was cancelled or dead-lettered."""
        return f"{self._run}{run_id}:parked"

    def children(self, run_id: str) -> str:
        """Set of the runs that its steps started and that may go on; they end with it."""
        return f"{self._run}{run_id}:children"

    def checkpoints(self, run_id: str) -> str:
        """List of the last checkpoints of a run that keeps them: what a step took and gave, and a cut."""
        return f"{self._run}{run_id}:checkpoints"

    def further(self, run_id: str) -> str:
        """Set of the run's keys that the end cannot name; the janitor expires them."""
        return f"{self._run}{run_id}:keys"
