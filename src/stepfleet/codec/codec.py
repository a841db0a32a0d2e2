"""The codec: events, values and errors to bytes and back, with the errors that users see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, cast

from stepfleet.codec.decoding import Decoder, UnknownType
from stepfleet.codec.encoding import Encoder, Limits, locate, pack_rest
from stepfleet.codec.forms import SCALARS, STR, Malformed, Refused
from stepfleet.codec.generic import make_generic_event
from stepfleet.codec.packing import new_packer, unpack
from stepfleet.codec.plans import ModelPlan
from stepfleet.codec.refusals import refusal_of
from stepfleet.codec.registry import TypeRegistry
from stepfleet.codec.remote_errors import bare_description
from stepfleet.errors import DecodeError, EncodeError, TooLargeError, UnknownTypeError
from stepfleet.events import Event

#: The version of everything this package writes, for the record around it to carry.
FORMAT_VERSION: Final = 1
#: Bytes up to which an event is looked at as one of scalars first.
PLAIN_BYTES: Final = 4 * 1024
#: Characters of a path, or of a message made of data, that an error shows.
_SHOWN: Final = 300


class Codec:
    """Encodes and decodes with the classes of one registry; safe to share between threads."""

    def __init__(
        self, registry: TypeRegistry, *, limits: Limits | None = None, generic: bool = False
    ) -> None:
        self._registry = registry
        self.limits = self._limits = limits or Limits()
        self._plain_bytes = min(PLAIN_BYTES, self._limits.max_bytes)
        self._decoder = Decoder(registry, max_depth=self._limits.max_depth, generic=generic)

    def generic(self) -> Codec:
        """Returns a codec with the same classes that makes stand-ins for unknown ones."""
        return Codec(self._registry, limits=self._limits, generic=True)

    def encode_fields(self, fields: Mapping[str, Any], *, where: str) -> bytes:
        """Returns the content of an event whose class is not known here.

        Raises: EncodeError, TooLargeError: as `encode_event`.
        """
        return self._encode(
            dict(fields),
            where,
            lambda encoder: [encoder.lower(dict(fields), 0), None, None],
            depth=0,
        )

    def encode_event(self, event: Event) -> tuple[str, bytes]:
        """Returns an event's type id and its content.

        Raises: EncodeError: the event cannot travel, and why. TooLargeError: it is over a limit.
        """
        plan = self._registry.plan_of(type(event))
        if not isinstance(plan, ModelPlan):
            refused = refusal_of(event)
            raise EncodeError(f"{type(event).__name__}: {refused.problem}; {refused.cure}")
        declared, extra = vars(event), event.__pydantic_extra__
        # An event of scalars needs no lowering: one msgpack call, 1.6 µs instead of 3.5.
        if (
            plan.keys == declared.keys()
            and _are_scalars(declared, event.__pydantic_fields_set__)
            and (not extra or _are_scalars(extra, event.__pydantic_fields_set__))
        ):
            payload = new_packer(pack_rest).pack([declared, extra or None, None])
        else:
            payload = self._encode(
                event,
                type(event).__name__,
                lambda encoder: encoder.model_body(event, plan, 0),
                depth=0,
            )
        if len(payload) > self._limits.max_bytes:
            raise self._too_large(type(event).__name__, len(payload))
        return plan.type_id, payload

    def decode_event(self, type_id: str, payload: bytes) -> Event:
        """Returns the event.

        Raises: UnknownTypeError: no class is registered for a type id, and this codec makes no
            stand-ins. DecodeError: the bytes are not such an event.
        """
        event = self._plain_event(type_id, payload)
        if event is not None:
            return event
        return self._decode(payload, type_id, lambda raw: self._event(type_id, raw))

    def _plain_event(self, type_id: str, payload: bytes) -> Event | None:
        """Returns an event of scalars, as most are, 2 us sooner; None for whatever needs a closer look."""
        plan = self._registry.plan_of_id(type_id)
        if not isinstance(plan, ModelPlan) or not plan.is_event or len(payload) > self._plain_bytes:
            return None
        try:
            declared, extra, unset = unpack(payload)
        except Exception:  # noqa: BLE001 - whoever looks closer says what is wrong
            return None
        is_plain = (
            unset is None
            and _are_plain(declared)
            and declared.keys() == plan.keys
            and (extra is None or (plan.extra == "allow" and _are_plain(extra)))
        )
        return cast("Event", plan.build(declared, extra, None)) if is_plain else None

    def encode_value(self, value: Any, *, where: str) -> bytes:
        """Returns the bytes of any value; `where` names it in errors.

        Raises: EncodeError: the value cannot travel, and why. TooLargeError: it is over a limit.
        """
        payload = self._encode(value, where, lambda encoder: encoder.lower(value, 1), depth=1)
        if len(payload) > self._limits.max_bytes:
            raise self._too_large(where, len(payload))
        return payload

    def decode_value(self, data: bytes) -> Any:
        """Returns the value.

        Raises: UnknownTypeError: as for events. DecodeError: the bytes are not a value.
        """
        return self._decode(data, "value", lambda raw: self._decoder.lift(raw, 1))

    def encode_error(self, error: BaseException) -> bytes:
        """Returns the bytes of an exception; what of its content cannot travel is left out."""
        name = type(error).__name__
        try:
            payload = self._encode(error, name, lambda encoder: encoder.error(error, 1), depth=1)
            if len(payload) <= self._limits.max_bytes:
                return payload
        except EncodeError:
            pass
        bare = bare_description(error, self._registry, max_bytes=self._limits.max_bytes)
        return new_packer(pack_rest).pack(bare)

    def decode_error(self, data: bytes) -> BaseException:
        """Returns the exception, not raised: its own class, or an `UnreconstructedException`.

        Raises: DecodeError: the bytes are not an exception.
        """
        return self._decode(data, "error", lambda raw: self._decoder.error(raw, 1))

    def _event(self, type_id: str, raw: Any) -> Event:
        plan = self._decoder.plan(type_id)
        if plan is None:
            return make_generic_event(type_id, self._decoder.generic_fields(raw, 0))
        if not isinstance(plan, ModelPlan) or not issubclass(plan.cls, Event):
            raise Malformed(f"{type_id} is not an event here")
        event: Event = self._decoder.model(plan, raw, 0)
        return event

    def _encode(
        self, value: Any, where: str, lowered: Callable[[Encoder], Any], *, depth: int
    ) -> bytes:
        encoder = Encoder(self._registry, self._limits)
        try:
            return encoder.pack(lowered(encoder))
        except Refused as refused:
            self._refuse(value, where, refused, depth)
        except RecursionError:
            raise TooLargeError(
                f"{where}: it is nested too deep for Python's stack here; flatten it, or lower the "
                "setting `depth_limit` to see where"
            ) from None
        except Exception as error:
            # What a value's own methods raise, or msgpack while another thread changes a container.
            raise EncodeError(f"{where}: it cannot be encoded: {error!r}") from error

    def _refuse(self, value: Any, where: str, refused: Refused, depth: int) -> NoReturn:
        if refused.limit == "size":
            raise TooLargeError(
                f"{where}: it has too many parts to fit into the limit of {self._limits.max_bytes} "
                "bytes (setting `event_limit`); keep large content elsewhere and send a reference"
            )
        path, found = locate(value, where, self._try, self._registry, depth=depth)
        reason = found or refused
        kind = TooLargeError if reason.limit else EncodeError
        raise kind(f"{_shortened(path)}: {reason.problem}; {reason.cure}")

    def _try(self, value: Any, depth: int) -> None:
        Encoder(self._registry, self._limits).lower(value, depth)

    def _too_large(self, where: str, size: int) -> TooLargeError:
        return TooLargeError(
            f"{where}: it takes {size} bytes, over the limit of {self._limits.max_bytes} bytes "
            "(setting `event_limit`); keep large content elsewhere and send a reference"
        )

    def _decode(self, data: bytes, what: str, lifted: Callable[[Any], Any]) -> Any:
        if len(data) > self._limits.max_bytes:
            raise DecodeError(
                f"{what}: it takes {len(data)} bytes, over the limit of {self._limits.max_bytes} "
                "bytes (setting `event_limit`)",
                data,
            )
        try:
            return lifted(unpack(data))
        except UnknownType as error:
            raise UnknownTypeError(_shortened(str(error)), data) from None
        except Malformed as error:
            raise DecodeError(_shortened(f"{what}: {error}"), data) from None
        except Exception as error:
            # msgpack and the constructors of values raise many kinds for bytes that are not theirs.
            message = _shortened(f"{what}: it cannot be read: {error!r}")
            raise DecodeError(message, data) from error


def _are_scalars(fields: dict[str, Any], fields_set: set[str]) -> bool:
    return (
        STR.issuperset(map(type, fields))
        and SCALARS.issuperset(map(type, fields.values()))
        and fields_set.issuperset(fields)
    )


def _are_plain(raw: Any) -> bool:
    if type(raw) is not dict:
        return False
    fields = cast("dict[Any, Any]", raw)
    return STR.issuperset(map(type, fields)) and SCALARS.issuperset(map(type, fields.values()))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
