"""Reads a consistent cut through one run: everything that is recorded of it, by one script. Layer: storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from stepfleet.core.cut import Buffer, Cut, Pending, Ticking
from stepfleet.errors import DecodeError
from stepfleet.storage.keys import Keys
from stepfleet.storage.link import Arg
from stepfleet.storage.scripts import Script, script

#: Characters of a delivery id: what is held begins with one.
_ID: Final = 22


class Reading(NamedTuple):
    """One call of `cut.lua`."""

    script: Script
    keys: list[str]
    args: list[Arg]


def reading(keys: Keys, run_id: str, *, contents: bool) -> Reading:
    """Return the call that reads a cut; without `contents` held deliveries and buffers are only counted."""
    names = [keys.run(run_id), keys.open(run_id), keys.parked(run_id), keys.store(run_id)]
    names += [keys.further(run_id), keys.timers, keys.timer_data]
    counted = () if contents else ("hold:", "buf:", "stage:", "inbox")
    return Reading(script("cut"), names, [run_id, f"{keys.tag}:s:", *counted])


def cut_of(run_id: str, reply: Sequence[Any]) -> Cut:
    """Return what `cut.lua` answered."""
    record, opened, parked, store, entries, timers, further = reply
    pending = [_pending(name, kept) for name, kept in _pairs(parked)]
    rows = [Pending(_text(d), _text(at), raw, _text(e)) for d, at, e, raw in _rows(entries, 4)]
    pending += sorted(rows, key=lambda row: tuple(int(n) for n in row.entry.split("-")))
    held: dict[str, int] = {}
    waiting: dict[str, list[Pending]] = {}
    metas: dict[str, dict[str, bytes]] = {}
    events: dict[str, Sequence[bytes]] = {}
    sent: dict[str, dict[str, bytes]] = {}
    waits: list[bytes] = []
    names: list[str] = []
    kept: dict[str, Mapping[str, bytes] | Sequence[bytes]] = {}
    for raw, type_, found in _rows(further, 3):
        content: Any = found
        name = _text(raw)
        kind, _, rest = name.partition(":")
        names.append(name)
        if kind == "hold" and isinstance(content, int):
            held[rest] = content
        elif kind == "hold":
            waiting[rest] = [_pending(one[:_ID], one[_ID:]) for one in content]
            held[rest] = len(content)
        elif kind == "buf" and rest.endswith(":events"):
            events[rest.removesuffix(":events")] = [] if isinstance(content, int) else content
        elif kind == "buf":
            metas[rest] = _fields(content)
        elif kind == "sent":
            sent[rest] = _fields(content)
        elif kind == "wait":
            waits = list(content[1::2])
        if type_ == b"hash":
            kept[name] = _fields(cast("list[bytes]", content))
        elif isinstance(content, list):
            kept[name] = cast("list[bytes]", content)
    return Cut(
        run_id=run_id,
        record=_fields(record),
        open={_text(name): _text(where) for name, where in _pairs(opened)},
        pending=pending,
        timers=[Ticking(_text(m), int(left), data) for m, left, data in _rows(timers, 3)],
        waits=waits,
        store={name: data.partition(b":")[2] for name, data in _fields(store).items()},
        held={step: length for step, length in held.items() if length},
        waiting=waiting,
        buffers={name: _buffer(meta, events.get(name, ())) for name, meta in metas.items()},
        sent=sent,
        names=names,
        kept=kept,
    )


def checkpoint_of(run_id: str, data: bytes) -> tuple[bytes, Cut]:
    """Return what a checkpoint is about and the cut in it, as the word `remember` wrote them.

    Raises:
        DecodeError: the bytes are no checkpoint.
    """
    try:
        about, position = _read(data, 0)
        cut, _ = _read(data, position)
        return about, cut_of(run_id, cut)
    except (ValueError, IndexError, TypeError) as error:
        raise DecodeError(f"a checkpoint is not readable: {error}", data) from error


def _read(data: bytes, position: int) -> tuple[Any, int]:
    if data[position : position + 1] != b"[":
        stop = data.index(b":", position) + 1
        end = stop + int(data[position : stop - 1])
        return data[stop:end], end
    items: list[Any] = []
    position += 1
    while data[position : position + 1] != b"]":
        item, position = _read(data, position)
        items.append(item)
    return items, position + 1


def _pending(name: bytes, kept: bytes) -> Pending:
    label, _, record = kept.partition(b"\n")
    return Pending(_text(name), _text(label), record)


def _buffer(meta: dict[str, bytes], events: Sequence[bytes]) -> Buffer:
    counts = {field[2:]: int(count) for field, count in meta.items() if field.startswith("n:")}
    return Buffer(int(meta.get("version", b"0")), counts, events)


def _fields(rows: Sequence[bytes]) -> dict[str, bytes]:
    return {_text(name): value for name, value in _pairs(rows)}


def _pairs(rows: Sequence[Any]) -> Any:
    return zip(rows[::2], rows[1::2], strict=True)


def _rows(flat: Sequence[Any], width: int) -> Any:
    return [flat[first : first + width] for first in range(0, len(flat), width)]


def _text(raw: bytes) -> str:
    return raw.decode()
