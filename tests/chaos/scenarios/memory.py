"""A workflow that eats memory, and workers that may have little of it: what F19's workers load."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stepfleet import Context, StopEvent, Workflow, step
from tests.support.fleet import note
from tests.support.flows import FLOWS as OTHERS
from tests.support.flows import TIMEOUT, Begin

#: The target of such workers.
EATING = "tests.chaos.scenarios.memory:FLOWS"
#: Environment variables that limit the worker which finds them: a folder for its cgroup, any value.
CGROUP, ADDRESS_SPACE = "CHAOS_CGROUP", "CHAOS_ADDRESS_SPACE"
#: Bytes that a worker may have in all, and more than it has when it starts.
LIMIT, MORE = 256 << 20, 512 << 20
#: Bytes that are eaten at once, and in all where nothing stops it.
BITE, ENOUGH = 16 << 20, 2 << 30


class Hungry(Workflow):
    """Takes memory until it gets no more."""

    @step
    async def kill(self, ctx: Context, ev: Begin) -> StopEvent:
        note("start", ctx.idempotency_key, step="kill", run=ctx.run_id)
        eaten = [bytearray(BITE) for _ in range(ENOUGH // BITE)]
        return StopEvent(result=len(eaten))


FLOWS: dict[str, Workflow] = {**OTHERS, "Hungry": Hungry(timeout=TIMEOUT)}


class MemoryGroups:
    """Folders of the kernel that limit the memory of the processes in them."""

    @staticmethod
    @contextmanager
    def made() -> Iterator[Path | None]:
        """Makes one for a group of a worker each; None where that is not allowed."""
        mounts = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
        for mount in mounts:
            parent = mount / f"stepfleet-chaos-{os.getpid()}"
            try:
                parent.mkdir()
            except OSError:
                continue
            try:
                yield parent if _is_memory(parent) else None
            finally:
                for group in (*filter(Path.is_dir, parent.iterdir()), parent):
                    group.rmdir()
            return
        yield None


def _is_memory(group: Path) -> bool:
    if (group / "memory.limit_in_bytes").exists():
        return True
    if not (group / "memory.max").exists():
        return False
    try:
        (group / "cgroup.subtree_control").write_text("+memory")
    except OSError:
        return False
    return True


def _limit_this_process() -> None:
    """Limits the worker that imports this, as its environment says."""
    if parent := os.environ.get(CGROUP):
        group = Path(parent) / str(os.getpid())
        group.mkdir()
        old, new = group / "memory.limit_in_bytes", group / "memory.max"
        (old if old.exists() else new).write_text(str(LIMIT))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    if ADDRESS_SPACE in os.environ:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + MORE
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


_limit_this_process()
