"""How commits are written for `commit.lua`: each fence, expectation and word. Layer: storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stepfleet.core import commit as c
from stepfleet.core.commit import Commit
from stepfleet.storage.keys import SYSTEM
from stepfleet.storage.link import Arg
from stepfleet.storage.packing import Packing

#: Is given a packing, its arguments, to write behind, and what to write.
Writer = Callable[[Packing, list[Arg], Any], None]


def write(packing: Packing, commit: Commit) -> None:
    """Write a commit behind those already there."""
    args = packing.args
    start = len(args)
    run_id = packing.run_id = commit.run_id
    packing.workflow = ""
    keys = packing.keys
    # What `Packing.key` does, without a call (1 us less per commit).
    index = packing.index
    run = index.setdefault(keys.run(run_id), len(index) + 1)
    pending = index.setdefault(keys.open(run_id), len(index) + 1)
    further = index.setdefault(keys.further(run_id), len(index) + 1)
    args += (0, run, pending, further, run_id)
    FENCES[type(commit.fence)](packing, args, commit.fence)
    args.append(len(commit.expects))
    for expectation in commit.expects:
        EXPECTATIONS[type(expectation)](packing, args, expectation)
    for word in commit.words:
        WORDS[type(word)](packing, args, word)
    args[start] = len(args) - start


# -- fences ----------------------------------------------------------------------------------------


def _entry_fence(p: Packing, args: list[Arg], f: c.EntryFence) -> None:
    p.workflow = f.route.workflow
    args += ("entry", p.stream(f.route), f.entry, f.delivery, p.hold(f.route))


def _stray_fence(p: Packing, args: list[Arg], f: c.StrayFence) -> None:
    args += ("stray", p.stream(f.route), f.entry)


def _effect_fence(p: Packing, args: list[Arg], f: c.EffectFence) -> None:
    args += ("effect", p.stream(f.route), f.entry)


def _timer_fence(p: Packing, args: list[Arg], f: c.TimerFence) -> None:
    args += ("timer", p.key(p.keys.timers), p.key(p.keys.timer_data), f.member)


def _overdue_fence(p: Packing, args: list[Arg], f: c.OverdueFence) -> None:
    args += ("overdue", p.key(p.keys.live))


def _operation_fence(p: Packing, args: list[Arg], f: c.OperationFence) -> None:
    args += ("operation", *_operation(p, f))


def _operation(p: Packing, f: c.OperationFence | c.AmendFence) -> tuple[Arg, Arg, Arg]:
    return p.key(p.keys.operations(p.run_id)), f.operation, p.bounds.operations_limit


def _control_fence(p: Packing, args: list[Arg], f: c.ControlFence) -> None:
    args.append("control")


def _damaged_fence(p: Packing, args: list[Arg], f: c.DamagedFence) -> None:
    args.append("damaged")


def _amend_fence(p: Packing, args: list[Arg], f: c.AmendFence) -> None:
    args += ("amend", *_operation(p, f), p.key(p.keys.store(p.run_id)))


def _new_run_fence(p: Packing, args: list[Arg], f: c.NewRunFence) -> None:
    args += ("new", f.digest, p.key(p.keys.live), len(f.fields), *f.fields)


# -- expectations ----------------------------------------------------------------------------------


def _has(p: Packing, args: list[Arg], e: c.Has) -> None:
    args += ("has", p.key(p.keys.wait(p.run_id)), e.waiter)


def _is(p: Packing, args: list[Arg], e: c.Is) -> None:
    args += ("is", e.field, e.value)


def _room(p: Packing, args: list[Arg], e: c.Room) -> None:
    args += ("room", p.key(p.keys.live), p.bounds.pending_runs_limit)


def _few_waits(p: Packing, args: list[Arg], e: c.FewWaits) -> None:
    args += ("few-waits", p.bounds.waiters_limit)


def _live(p: Packing, args: list[Arg], e: c.Live) -> None:
    args += ("live", p.key(p.keys.run(e.run_id)))


def _version(p: Packing, args: list[Arg], e: c.Version) -> None:
    args += ("version", e.buffer, *p.buffer(e.buffer), e.version)


def _quota(p: Packing, args: list[Arg], e: c.Quota) -> None:
    args += ("quota", e.buffer, *p.buffer(e.buffer), e.type, len(e.quota))
    for type_id, need in e.quota:
        args += (type_id, need)


def _staged(p: Packing, args: list[Arg], e: c.Staged) -> None:
    stage = p.key(p.keys.stage(p.run_id, e.delivery, e.route.step))
    args += ("staged", stage, e.length)


def _stored(p: Packing, args: list[Arg], e: c.Stored) -> None:
    args += ("value", p.key(p.keys.store(p.run_id)), e.field, e.version or "")


def _free(p: Packing, args: list[Arg], e: c.Free) -> None:
    args += ("free", p.key(p.keys.lock(p.run_id)), e.token)


def _locked(p: Packing, args: list[Arg], e: c.Locked) -> None:
    args += ("locked", p.key(p.keys.lock(p.run_id)), e.token)


def _unapplied(p: Packing, args: list[Arg], e: c.Unapplied) -> None:
    args += ("unapplied", f"{e.delivery}!", e.execution, e.call)


def _counted(p: Packing, args: list[Arg], e: c.Counted) -> None:
    args += ("counted", f"{e.delivery}!", e.execution, e.calls)


def _kept(p: Packing, args: list[Arg], e: c.Kept) -> None:
    args += ("kept", p.guard(e.by), e.delivery)


def _recorded(p: Packing, args: list[Arg], e: c.Recorded) -> None:
    _same(args, p.key(p.keys.run(e.run_id)), -1, e.fields)


def _located(p: Packing, args: list[Arg], e: c.Located) -> None:
    _same(args, p.key(p.keys.open(e.run_id)), len(e.open), e.open)


def _same(args: list[Arg], key: int, size: int, rows: Mapping[str, str]) -> None:
    args += ("same", key, size, len(rows))
    for row in rows.items():
        args += row


def _withheld(p: Packing, args: list[Arg], e: c.Withheld) -> None:
    args += ("staged", p.key(p.keys.hold(e.run_id, e.step)), e.length)


# -- words -----------------------------------------------------------------------------------------


def _emit(p: Packing, args: list[Arg], w: c.Emit) -> None:
    args += (
        "also" if w.also else "emit",
        p.guard(w.guard),
        p.inbox(w.route) if w.awaitable and w.route.step else 0,
        p.stream(w.route),
        p.hold(w.route),
        len(w.deliveries),
    )
    for delivery in w.deliveries:
        args += delivery


def _pair(p: Packing, args: list[Arg], w: c.Pair) -> None:
    route = w.route._replace(slots=())
    args += (
        "also pair" if w.also else "pair",
        p.guard(w.guard),
        p.inbox(route) if w.awaitable else 0,
        p.stream(route),
        p.hold(route),
        p.key(p.keys.batch(p.run_id, w.delivery)),
        w.delivery,
        w.record,
        len(route.types),
    )
    needs = dict(zip(route.types, w.route.slots, strict=True))
    for name in (route.type, *(name for name in needs if name != route.type)):
        args += (p.key(p.keys.partners(p.run_id, route.step, name, w.scope)), needs[name])


def _open(p: Packing, args: list[Arg], w: c.Open) -> None:
    args += ("open", p.key(p.keys.scope(p.run_id, w.scope)), len(w.releases))
    for route, delivery, record in w.releases:
        args += (p.stream(route), delivery, record)


def _gather(p: Packing, args: list[Arg], w: c.Gather) -> None:
    args += (
        "also gather" if w.also else "gather",
        p.key(p.keys.scope(p.run_id, w.scope)),
        p.key(p.keys.gathered(p.run_id, w.scope, w.route.step)),
        p.inbox(w.route) if w.awaitable else 0,
        p.stream(w.route),
        p.hold(w.route),
        w.quota,
        w.type,
        len(w.deliveries),
    )
    for delivery in w.deliveries:
        args += delivery


def _within(p: Packing, args: list[Arg], w: c.Within) -> None:
    args.append("within")


def _tally(p: Packing, args: list[Arg], w: c.Tally) -> None:
    args += ("tally", p.key(p.keys.scope(p.run_id, w.scope)), w.by, len(w.releases))
    for route in w.releases:
        args += (p.stream(route), p.hold(route))


def _consume(p: Packing, args: list[Arg], w: c.Consume) -> None:
    keys = p.keys
    if w.route is None:
        args += ("discard", p.key(keys.batch(p.run_id, w.name)))
    else:
        args += ("discard", p.key(keys.gathered(p.run_id, w.name, w.route.step)))


def _publish(p: Packing, args: list[Arg], w: c.Publish) -> None:
    args += (
        "publish",
        p.key(p.keys.events(p.run_id)),
        p.bounds.stream_limit,
        p.guard(w.guard),
        w.field,
        w.entry,
    )


def _mark(p: Packing, args: list[Arg], w: c.Mark) -> None:
    events, guard = p.key(p.keys.events(p.run_id)), p.guard(w.guard)
    args += ("mark", events, p.bounds.stream_limit, guard, w.entry, len(w.repeated), *w.repeated)


def _append(p: Packing, args: list[Arg], w: c.Append) -> None:
    args += ("append", *p.buffer(w.buffer), w.type, w.event)


def _take(p: Packing, args: list[Arg], w: c.Take) -> None:
    args += ("take", *p.buffer(w.buffer), w.version)


def _stage(p: Packing, args: list[Arg], w: c.Stage) -> None:
    stage = p.key(p.keys.stage(p.run_id, w.delivery, w.route.step))
    args += ("stage", stage, int(w.first), p.stream(w.route), len(w.deliveries))
    for delivery in w.deliveries:
        args += delivery


def _unstage(p: Packing, args: list[Arg], w: c.Unstage) -> None:
    stage = p.key(p.keys.stage(p.run_id, w.delivery, w.route.step))
    word = "also unstage" if w.also else "unstage"
    args += (word, stage, p.stream(w.route), p.hold(w.route), w.length, p.inbox(w.route))


def _set_timer(p: Packing, args: list[Arg], w: c.SetTimer) -> None:
    args += ("timer", p.key(p.keys.timers), p.key(p.keys.timer_data), w.member, w.delay_ms, w.data)


def _drop_timer(p: Packing, args: list[Arg], w: c.DropTimer) -> None:
    args += ("untimer", p.key(p.keys.timers), p.key(p.keys.timer_data), w.member)


def _wait(p: Packing, args: list[Arg], w: c.Wait) -> None:
    args += ("put", p.key(p.keys.wait(p.run_id)), w.waiter, w.data)
    args += ("count", "waiting", 1, "count", f"waiting:{w.type}", 1, "count", "waits", 1)


def _unwait(p: Packing, args: list[Arg], w: c.Unwait) -> None:
    args += ("drop", p.key(p.keys.wait(p.run_id)), w.waiter)
    args += ("count", "waiting", -1, "count", f"waiting:{w.type}", -1)


def _keep(p: Packing, args: list[Arg], w: c.Keep) -> None:
    args += ("push", p.key(p.keys.inbox(p.run_id)), w.event, w.kept, "count", "inbox", 1)


def _unkeep(p: Packing, args: list[Arg], w: c.Unkeep) -> None:
    args += ("pull", p.key(p.keys.inbox(p.run_id)), w.event)


def _tell(p: Packing, args: list[Arg], w: c.Tell) -> None:
    args += ("tell", p.key(p.keys.history(p.run_id)), p.bounds.stream_limit, w.row)


def _note(p: Packing, args: list[Arg], w: c.Note) -> None:
    args += ("note", w.delivery, w.where)


def _forget(p: Packing, args: list[Arg], w: c.Forget) -> None:
    args += ("erase", p.key(p.keys.sent(p.run_id, w.delivery)))
    args += ("drop", p.key(p.keys.open(p.run_id)), f"{w.delivery}!")


def _count(p: Packing, args: list[Arg], w: c.Count) -> None:
    args += ("early", f"{w.delivery}!", w.execution, w.call)


def _write(p: Packing, args: list[Arg], w: c.Write) -> None:
    args += ("write", p.key(p.keys.store(p.run_id)), w.field, w.value)


def _unwrite(p: Packing, args: list[Arg], w: c.Unwrite) -> None:
    args += ("drop", p.key(p.keys.store(p.run_id)), w.field)


def _lock(p: Packing, args: list[Arg], w: c.Lock) -> None:
    args += ("lock", p.key(p.keys.lock(p.run_id)), w.token, w.ttl_ms)


def _unlock(p: Packing, args: list[Arg], w: c.Unlock) -> None:
    args += ("unlock", p.key(p.keys.lock(p.run_id)), w.token)


def _deadline(p: Packing, args: list[Arg], w: c.Deadline) -> None:
    args += ("deadline", p.key(p.keys.live), w.age_ms)


def _wake(p: Packing, args: list[Arg], w: c.Wake) -> None:
    args += ("wake", p.stream(w.route), p.hold(w.route))


def _lend(p: Packing, args: list[Arg], w: c.Lend) -> None:
    args += ("lend", p.stream(w.route), w.entry, w.delivery, p.hold(w.route), w.times)


def _recount(p: Packing, args: list[Arg], w: c.Recount) -> None:
    args += ("recount", p.stream(w.route), w.entry, w.times)


def _join(p: Packing, args: list[Arg], w: c.Join) -> None:
    keys = p.keys
    args += ("join", p.key(keys.children(w.owner)))
    args += (p.key(keys.run(w.owner)), p.key(keys.further(w.owner)))


def _leave(p: Packing, args: list[Arg], w: c.Leave) -> None:
    args += ("leave", p.key(p.keys.children(p.run_id)), len(w.runs), *w.runs)


def _place(p: Packing, args: list[Arg], w: c.Place) -> None:
    places, queue = p.keys.places(w.workflow)
    args += ("place", p.key(places), p.key(queue), w.limit)


def _admit(p: Packing, args: list[Arg], w: c.Admit) -> None:
    args += ("admit", p.stream(w.route), p.hold(w.route))


def _park(p: Packing, args: list[Arg], w: c.Park) -> None:
    args += ("park", p.key(p.keys.parked(p.run_id)), p.stream(w.route), w.entry)


def _save(p: Packing, args: list[Arg], w: c.Save) -> None:
    kept = f"{w.label}\n".encode() + w.record
    args += ("save", p.key(p.keys.parked(p.run_id)), w.delivery, kept)


def _remember(p: Packing, args: list[Arg], w: c.Remember) -> None:
    keys, run_id = p.keys, p.run_id
    names = (keys.parked(run_id), keys.store(run_id), keys.timers, keys.timer_data)
    args += ("remember", p.key(keys.checkpoints(run_id)), w.kept, w.about)
    args += (*map(p.key, names), f"{keys.tag}:s:")


def _withdraw(p: Packing, args: list[Arg], w: c.Withdraw) -> None:
    args += ("withdraw", p.stream(w.route), w.entry)


def _let_go(p: Packing, args: list[Arg], w: c.LetGo) -> None:
    held = p.key(p.keys.hold(w.run_id, w.route.step))
    args += ("unstage", held, p.stream(w.route), p.hold(w.route), w.length, p.inbox(w.route))


def _adopt(p: Packing, args: list[Arg], w: c.Adopt) -> None:
    theirs, mine = p.keys.run(w.run_id), p.keys.run(p.run_id)
    args += ("adopt", p.key(f"{theirs}:{w.name}"), p.key(f"{mine}:{w.name}"))


def _fill(p: Packing, args: list[Arg], w: c.Fill) -> None:
    key = p.key(f"{p.keys.run(p.run_id)}:{w.name}")
    for field, value in w.rows.items():
        args += ("put", key, field, value)


def _pile(p: Packing, args: list[Arg], w: c.Pile) -> None:
    key = p.key(f"{p.keys.run(p.run_id)}:{w.name}")
    for value in w.values:
        args += ("push", key, value, len(w.values))


def _expunge(p: Packing, args: list[Arg], w: c.Expunge) -> None:
    args += ("drop", p.key(p.keys.sent(p.run_id, w.delivery)), w.field)


def _succeed(p: Packing, args: list[Arg], w: c.Succeed) -> None:
    args += ("put", p.key(p.keys.run(w.run_id)), "continued", p.run_id)
    args += ("erase", p.key(p.keys.open(w.run_id)), "erase", p.key(p.keys.parked(w.run_id)))


def _dead_letter(p: Packing, args: list[Arg], w: c.DeadLetter) -> None:
    args += ("log", p.key(p.keys.dead), p.bounds.dead_limit, len(w.fields), *w.fields)


def _end(p: Packing, args: list[Arg], w: c.End) -> None:
    keys, bounds = p.keys, p.bounds
    args += (
        "end",
        w.status,
        p.key(keys.events(p.run_id)),
        p.key(keys.live),
        p.key(keys.ended),
        p.key(keys.ends),
        p.key(keys.tidy),
        *_places(p, w.workflow or p.workflow),
        int(bounds.retention.total_seconds() * 1000),
        bounds.ends_limit,
        int(w.parks),
        w.entry,
        len(w.fields),
        *w.fields,
    )


def _places(p: Packing, workflow: str) -> tuple[int, int, int]:
    if not workflow:
        return 0, 0, 0
    places, queue = p.keys.places(workflow)
    return p.key(places), p.key(queue), p.key(p.keys.stream(workflow, SYSTEM, ""))


# -- which is written how --------------------------------------------------------------------------

FENCES: dict[type[Any], Writer] = {
    c.EntryFence: _entry_fence,
    c.StrayFence: _stray_fence,
    c.EffectFence: _effect_fence,
    c.TimerFence: _timer_fence,
    c.OverdueFence: _overdue_fence,
    c.OperationFence: _operation_fence,
    c.ControlFence: _control_fence,
    c.DamagedFence: _damaged_fence,
    c.AmendFence: _amend_fence,
    c.NewRunFence: _new_run_fence,
}

EXPECTATIONS: dict[type[Any], Writer] = {
    c.Has: _has,
    c.Is: _is,
    c.Room: _room,
    c.FewWaits: _few_waits,
    c.Live: _live,
    c.Version: _version,
    c.Quota: _quota,
    c.Staged: _staged,
    c.Stored: _stored,
    c.Free: _free,
    c.Locked: _locked,
    c.Unapplied: _unapplied,
    c.Counted: _counted,
    c.Kept: _kept,
    c.Recorded: _recorded,
    c.Located: _located,
    c.Withheld: _withheld,
}

WORDS: dict[type[Any], Writer] = {
    c.Emit: _emit,
    c.Pair: _pair,
    c.Open: _open,
    c.Gather: _gather,
    c.Within: _within,
    c.Tally: _tally,
    c.Consume: _consume,
    c.Publish: _publish,
    c.Mark: _mark,
    c.Append: _append,
    c.Take: _take,
    c.Stage: _stage,
    c.Unstage: _unstage,
    c.SetTimer: _set_timer,
    c.DropTimer: _drop_timer,
    c.Wait: _wait,
    c.Unwait: _unwait,
    c.Keep: _keep,
    c.Unkeep: _unkeep,
    c.Tell: _tell,
    c.Note: _note,
    c.Forget: _forget,
    c.Count: _count,
    c.Write: _write,
    c.Unwrite: _unwrite,
    c.Lock: _lock,
    c.Unlock: _unlock,
    c.Deadline: _deadline,
    c.Wake: _wake,
    c.Lend: _lend,
    c.Recount: _recount,
    c.Join: _join,
    c.Leave: _leave,
    c.Place: _place,
    c.Admit: _admit,
    c.Park: _park,
    c.Save: _save,
    c.Remember: _remember,
    c.Withdraw: _withdraw,
    c.LetGo: _let_go,
    c.Adopt: _adopt,
    c.Fill: _fill,
    c.Pile: _pile,
    c.Expunge: _expunge,
    c.Succeed: _succeed,
    c.DeadLetter: _dead_letter,
    c.End: _end,
}
