"""Decodes many fuzzed payloads in every way, and prints what the interpreter was asked to do meanwhile.

    python -m tests.trust.decode_everything COUNT SEED

A program of its own because an audit hook cannot be removed. It prints how many payloads there were, how
many attempts to decode gave a value, and one line for each event heard.
"""

from __future__ import annotations

import base64
import json
import pickle
import sys
from collections.abc import Callable
from random import Random
from typing import Any, Final, cast

import msgpack
from pydantic import BaseModel

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step, wire
from stepfleet.codec import Codec, TypeRegistry
from stepfleet.codec.codec import Limits
from stepfleet.context import JsonSerializer
from stepfleet.core.commit import Route
from stepfleet.core.delivery import Record
from stepfleet.errors import ContextSerdeError, DecodeError
from stepfleet.storage.reader import decode_definition

#: Kinds of events that nothing that is read may cause.
FORBIDDEN: Final = (
    *("import", "exec", "compile", "open", "pickle", "marshal", "os", "subprocess", "ctypes"),
    *("socket", "shutil", "code", "sys"),
)


class Inner(BaseModel):
    n: int = 0


class Sample(Event):
    text: str = ""
    inner: Inner = Inner()
    anything: Any = None


class Flow(Workflow):
    @step
    async def first(self, ev: StartEvent) -> Sample:
        return Sample()

    @step
    async def last(self, ev: Sample) -> StopEvent:
        return StopEvent()


class Call:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("a pickle was read",)


PICKLE: Final = base64.b64encode(pickle.dumps(Call())).decode()
EVIL: Final[list[Any]] = [
    *("os.system", "builtins.eval", "antigravity.Thing", "__import__('os')", PICKLE, "Sample"),
    *(
        "../../etc/passwd",
        "Europe/Berlin",
        "Sample:0",
        "\ud800".encode("utf-8", "replace").decode(),
    ),
    {"__is_pydantic": True, "qualified_name": "antigravity.Thing", "value": {}},
    {"__is_component": True, "qualified_name": "os.system", "value": {"command": "true"}},
    {"type": "SystemExit", "module": "builtins", "message": "1", "args": [1]},
    {"lc": 1, "type": "constructor", "id": ["os", "system"]},
]

REGISTRY: Final = TypeRegistry([Sample, Inner, StopEvent])
STRICT: Final = Codec(REGISTRY, limits=Limits())
GENERIC: Final = Codec(TypeRegistry([]), limits=Limits(), generic=True)
FLOW: Final = Flow()


def _from_dict(data: bytes) -> Any:
    content = json.loads(data.decode())
    return Context.from_dict(FLOW, content if isinstance(content, dict) else {"state": content})


def _from_json(data: bytes) -> Any:
    return JsonSerializer(allowed_types=[Sample, Inner]).deserialize(data.decode())


DECODERS: Final[list[Callable[[bytes], Any]]] = [
    *(STRICT.decode_value, STRICT.decode_error, GENERIC.decode_value, GENERIC.decode_error),
    lambda data: STRICT.decode_event("Sample", data),
    lambda data: GENERIC.decode_event("antigravity.Thing", data),
    *(wire.decode_record, wire.decode_public, wire.decode_timer, wire.decode_waiter),
    *(wire.decode_completed, wire.decode_unclaimed, wire.decode_buffered, decode_definition),
]
TEXT_DECODERS: Final[list[Callable[[bytes], Any]]] = [_from_json, _from_dict]


def valid_payloads() -> list[bytes]:
    """Returns one payload of each kind, as the code itself writes it."""
    _, event = STRICT.encode_event(Sample(text="x", inner=Inner(n=1), anything=[1, {"a": b"b"}]))
    record = wire.encode_record(Record("d1", "Sample", event))
    route = Route("Flow", "Sample", "last", 4, 0, ("Sample",))
    return [
        event,
        STRICT.encode_value([Inner(n=2), {"k": (1, 2.5)}], where="x"),
        STRICT.encode_error(ValueError("wrong", 3)),
        record,
        wire.encode_public(wire.PublicEntry("event", "Sample", event, "last", "d1", 1, "token")),
        wire.encode_timer(wire.Promotion(route, "d1", record)),
        wire.encode_timer(wire.Expiry("w1")),
        wire.encode_waiter(wire.Waiter("w", "Sample", "Sample", "id", b"", route, "d", record, "")),
        wire.encode_completed(wire.Completed("d1", "last", "Sample", event, "Sample", event)),
        wire.encode_unclaimed(wire.Unclaimed("Sample", event, 3)),
        wire.encode_buffered(wire.BufferedEvent("Sample", event)),
    ]


def nonsense(random: Random, depth: int = 0) -> Any:
    """Returns a value that packs, with what would be dangerous to believe in it."""
    kind = random.randrange(8 if depth < 4 else 5)
    if kind < 2:
        return random.choice(EVIL)
    if kind < 5:
        return random.choice([None, True, -1, 2**63, 1.5, "", b"\x00", "RED", 0, 1])
    inner = [nonsense(random, depth + 1) for _ in range(random.randrange(5))]
    if kind == 5:
        return inner
    names = ["type", "module", "qualified_name", "value", "args", "__is_pydantic", "state", "n"]
    return {random.choice(names): one for one in inner}


def _with_extensions(random: Random, value: Any) -> Any:
    if isinstance(value, list):
        return [_with_extensions(random, one) for one in cast("list[Any]", value)]
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {key: _with_extensions(random, one) for key, one in items}
    if random.randrange(3) == 0:
        return msgpack.ExtType(random.randrange(32), cast("bytes", msgpack.packb(value)))
    return value


def mutated(random: Random, data: bytes) -> bytes:
    """Returns bytes with a few of them changed, removed or added."""
    changed = bytearray(data)
    for _ in range(random.randrange(1, 5)):
        at = random.randrange(len(changed) + 1)
        match random.randrange(3):
            case 0 if at < len(changed):
                changed[at] = random.randrange(256)
            case 1:
                del changed[at : at + random.randrange(1, 8)]
            case _:
                changed[at:at] = random.randbytes(random.randrange(1, 8))
    return bytes(changed)


def main(count: int, seed: int) -> None:
    """Decodes `count` payloads, and as many texts."""
    random, originals = Random(seed), valid_payloads()
    zone = STRICT.encode_value("warm", where="x")
    json_text = JsonSerializer(allowed_types=[Sample, Inner]).serialize([Sample(), {"a": 1}])
    snapshot = json.dumps(Context(FLOW).to_dict())
    heard: list[str] = []
    armed = False

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if armed and event.partition(".")[0] in FORBIDDEN and event != "sys._getframe":
            heard.append(f"{event} {args!r}"[:200])

    # What is loaded at the first use of something is no answer to data: everything is used once.
    for decoder, data in [(one, data) for one in DECODERS for data in [*originals, zone]]:
        _attempt(decoder, data)
    for text in (json_text, snapshot):
        for decoder in TEXT_DECODERS:
            _attempt(decoder, text.encode())
    modules = set(sys.modules)
    sys.addaudithook(hear)
    armed = True
    compile("1", "<the hook hears>", "eval")
    assert len(heard) == 1, heard
    heard.clear()
    values = 0
    for number in range(count):
        armed = False
        match number % 3:
            case 0:
                data = random.randbytes(random.randrange(200))
            case 1:
                data = mutated(random, random.choice(originals))
            case _:
                value = _with_extensions(random, nonsense(random))
                # A version and fields: what every record of the wire begins with.
                data = cast("bytes", msgpack.packb([1, value, value] if number % 2 else value))
        text = _text(random, number, json_text, snapshot)
        armed = True
        values += sum(_attempt(decoder, data) for decoder in DECODERS)
        values += sum(_attempt(decoder, text) for decoder in TEXT_DECODERS)
    armed = False
    heard += [f"module {name}" for name in sorted(set(sys.modules) - modules)]
    print(count, values, *heard, sep="\n")


def _text(random: Random, number: int, *known: str) -> bytes:
    if number % 2:
        return mutated(random, random.choice(known).encode()).decode("utf-8", "replace").encode()
    value = nonsense(random)
    return json.dumps(value, default=lambda one: one.decode("latin-1")).encode()


def _attempt(decoder: Callable[[bytes], Any], data: bytes) -> bool:
    """Says whether a decoder made a value of it; any other error than its own ends the program."""
    try:
        decoder(data)
    except (DecodeError, ContextSerdeError):
        return False
    except ValueError:
        # JSON that is none, a class that nobody named, fields that do not fit it
        if decoder not in TEXT_DECODERS:
            raise
        return False
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
