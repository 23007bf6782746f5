"""Short attributes, read off OTLP's bytes: to make protobuf's messages of one takes several times as long. Pure.

Only a text or a number that is written in the one usual way is read, with sizes of a byte each; of anything else
nothing is said, and protobuf is to be asked.
"""

from __future__ import annotations

from struct import Struct

from agent_runner.contract.memory import Remembered

MAX_SIZE = 0x7F
"""Most bytes of an attribute that is read here."""

_TEXTS = tuple(bytes((0x12, size + 2, 0x0A, size)) for size in range(MAX_SIZE))
_NUMBERS = tuple(bytes((0x12, size + 1, 0x18)) for size in range(5))
_FLOAT = b"\x12\x09\x21"
"""What stands before a value: its field and size, and those of the text or number that it is."""

_double = Struct("<d").unpack_from


@Remembered
def _name(encoded: bytes) -> str | None:
    """Return the name that field 1 holds."""
    try:
        return encoded[2:].decode() if encoded[0] == 0x0A and encoded[1] == len(encoded) - 2 else None
    except UnicodeDecodeError:
        return None


def read(encoded: bytes) -> tuple[str, str | int | float] | None:
    """Return name and value of an attribute; None for one that is not read here."""
    if not 6 <= len(encoded) <= MAX_SIZE:
        return None
    start = encoded[1] + 2
    value = encoded[start:]
    if (name := _name[encoded[:start]]) is None:
        return None
    if value[:4] == _TEXTS[len(value) - 4]:
        try:
            return name, value[4:].decode()
        except UnicodeDecodeError:
            return None
    if len(value) == 11 and value[:3] == _FLOAT:
        return name, _double(value, 3)[0]
    if 4 <= len(value) < 8 and value[:3] == _NUMBERS[len(value) - 3]:
        return _whole(name, value[3:])
    return None


def _whole(name: str, written: bytes) -> tuple[str, int] | None:
    """Return a number of up to four bytes, each of which holds seven bits, the lowest first."""
    bits, last = int.from_bytes(written, "little"), 8 * (len(written) - 1)
    goes_on = 0x80808080 >> 32 - last
    if bits & 0x80808080 != goes_on or (last and not bits >> last):  # all but the last go on, and that is not zero
        return None
    return name, bits & 0x7F | bits >> 1 & 0x3F80 | bits >> 2 & 0x1FC000 | bits >> 3 & 0xFE00000
