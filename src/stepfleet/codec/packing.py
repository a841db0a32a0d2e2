"""msgpack with types and with the options that this format uses; nothing else imports it."""

# msgpack ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import msgpack

#: Lets lone surrogates (undecodable file names, cut JSON escapes) travel as they are.
UNICODE_ERRORS: Final = "surrogatepass"
#: Bytes that a packer starts with; the default of 256 KiB is for streams of many objects.
_BUFFER_BYTES: Final = 512
#: Bytes above which data is walked once before anything is allocated: a header may promise as many
#: items as there are bytes, a thousand times over.
_CHECKED_BYTES: Final = 8 * 1024


class Packer(Protocol):
    """Packs one value after the other."""

    def pack(self, obj: Any, /) -> bytes:
        """Returns the bytes of a value."""
        ...

    def pack_array_header(self, size: int, /) -> bytes:
        """Returns the bytes that begin a list of this many items."""
        ...


def new_packer(default: Callable[[Any], Any] | None = None) -> Packer:
    """Returns a packer for one value.

    A packer is not shared: its buffer is not safe when a thread, or a finalizer of the same thread,
    encodes in the middle of a call. A fresh one costs 0.2 µs.
    """
    packer: Any = msgpack.Packer(
        strict_types=True, default=default, buf_size=_BUFFER_BYTES, unicode_errors=UNICODE_ERRORS
    )
    return packer


def extension(code: int, data: bytes) -> Any:
    """Returns what a packer writes as an extension."""
    return msgpack.ExtType(code, data)


def unpack(data: bytes) -> Any:
    """Returns what msgpack makes of the bytes; an extension becomes a tuple of code and bytes.

    Raises: ValueError and others, as msgpack does, for anything but one complete value.
    """
    if len(data) > _CHECKED_BYTES:
        walker = msgpack.Unpacker(max_buffer_size=len(data))
        walker.feed(data)
        walker.skip()
    # msgpack itself never makes a tuple with these options, so a tuple can only be an extension.
    return msgpack.unpackb(
        data, ext_hook=_extension, strict_map_key=True, unicode_errors=UNICODE_ERRORS
    )


def _extension(code: int, data: bytes) -> tuple[int, bytes]:
    return code, data
