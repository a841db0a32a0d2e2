"""Values and bytes: exact both ways, types out of band, no class or code ever chosen by data.

Bytes are msgpack. What msgpack has no word for travels as an extension type, which no value that a
user can send looks like; a type id in it becomes a class only through a `TypeRegistry`.
"""

from stepfleet.codec.codec import FORMAT_VERSION, Codec, Limits
from stepfleet.codec.generic import GenericEnum, GenericEvent, GenericModel
from stepfleet.codec.registry import TypeRegistry

__all__ = [
    "FORMAT_VERSION",
    "Codec",
    "GenericEnum",
    "GenericEvent",
    "GenericModel",
    "Limits",
    "TypeRegistry",
]
