"""Attributes as OTLP's bytes: read, and those of a sandbox cleaned. What is short is read once and remembered.

Importing this module imports OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, cast

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from agent_runner.contract.memory import SHORT, Memory, Remembered
from agent_runner.contract.spans import Value
from host_client.telemetry.otlp import key_values

from . import _short as short
from . import clean
from .shallow import Message

MAX_VALUES = 100_000
"""Most events, attributes and items of lists that the spans of one event have: two bytes may make one, to look at which
costs a microsecond."""

_MAX_COUNT = 2**32 - 1
_PLAIN = frozenset({"string_value", "bool_value", "int_value", "double_value"})
_NUMBERS = _PLAIN - {"string_value"}


Attribute = tuple[str, Any]
"""A name and a value."""


def _read(encoded: bytes) -> Attribute:
    pair = KeyValue.FromString(encoded)
    kind = pair.value.WhichOneof("value")
    return pair.key, getattr(pair.value, kind) if kind in _PLAIN else None


read = Remembered(_read)
"""Return what an encoded attribute says; raise DecodeError for what is none.

A value is None that is no text, number or truth value.
"""


def encode(of: Mapping[str, Value]) -> list[bytes]:
    """Return attributes, encoded."""
    return [pair.SerializeToString() for pair in key_values(of)]


_HOSTS: Attribute = ("", None)
"""What is the host's to say."""

_LONG = 4096
"""Bytes of an attribute that is looked at after it is known to be wanted."""

as_it_is: Memory[bytes, Attribute] = Memory()
"""What a sandbox may say in these bytes, or that it is the host's. No lists."""

_lists: Memory[bytes, Attribute] = Memory()
"""The same of lists, whose items count each time."""


class Cleaner:
    """Cleans the attributes of one event from a sandbox; raises ValueError for too many, and for what is no OTLP.

    ``given`` are texts that the host told the sandbox: they come back as they were.
    """

    def __init__(self, given: Collection[str]) -> None:
        self._given = given
        self._left = MAX_VALUES
        self._rewritten: dict[bytes, bytes] = {}
        """What of the attributes at hand does not go on as it came."""

    def count(self, values: int) -> None:
        """Take note of so many values more."""
        self._left -= values
        if self._left < 0:
            raise ValueError(f"telemetry of more than {MAX_VALUES} attributes and events")

    def clean(self, of: Message, owned: AbstractSet[str] = frozenset()) -> dict[str, Any]:
        """Leave what is the sandbox's to say, of two of a name the last, and of too many the last.

        Returns the attributes; ``of`` is a span or an event. ``owned`` are names that the host will say itself.
        """
        attributes = of.attributes
        encoded: list[bytes] = attributes[:]
        self.count(len(encoded))
        self._rewritten.clear()
        if len(encoded) > clean.MAX_ATTRIBUTES:
            return self._sift(of, encoded, owned)
        found = list(map(as_it_is.get, encoded))
        for index in [index for index, attribute in enumerate(found) if attribute is None]:
            if len(encoded[index]) > _LONG:
                return self._sift(of, encoded, owned)
            found[index] = self._learn(encoded[index])
        values: dict[str, Any] = dict(cast("list[Attribute]", found))
        if len(values) < len(found) or self._rewritten or not owned.isdisjoint(values):
            return self._sift(of, encoded, owned)
        # What a runner sends: one attribute of a name, and one of them the host's, which is its session.
        if "" in values:
            del values[""], attributes[found.index(_HOSTS)]
        return values

    def _sift(self, of: Message, encoded: list[bytes], owned: AbstractSet[str]) -> dict[str, Any]:
        """Do the same one by one, from the last, until there are enough."""
        values: dict[str, Any] = {}
        kept: list[bytes] = []
        for index in range(len(encoded) - 1, -1, -1):
            if len(kept) == clean.MAX_ATTRIBUTES:
                of.dropped_attributes_count = min(of.dropped_attributes_count + index + 1, _MAX_COUNT)
                break
            each = encoded[index]
            name, value = as_it_is.get(each) or self._learn(each, values)
            if name and name not in owned and name not in values:
                values[name] = value
                kept.append(self._rewritten.get(each, each))
        del of.attributes[:]
        of.attributes.extend(reversed(kept))
        return values

    def _learn(self, encoded: bytes, taken: Collection[str] = ()) -> Attribute:
        """Return what an attribute may say, nothing under a name that is taken; remember what goes on as it came."""
        if (attribute := short.read(encoded)) is not None:
            name, value = attribute
            is_clean = name and clean.attribute[name] == name
            if is_clean and (type(value) is not str or clean.said(name, value, self._given) == value):
                self._keep(encoded, attribute)
                return attribute
        return self._learn_any(encoded, taken)

    def _learn_any(self, encoded: bytes, taken: Collection[str]) -> Attribute:
        """Do it for one that may be long or a list, or must be cleaned."""
        if (known := _lists.get(encoded)) is not None:
            self.count(len(known[1]))
            return known
        try:
            pair = KeyValue.FromString(encoded)
        except DecodeError as error:
            raise ValueError(f"telemetry that is no OTLP: {error}") from None
        pair.DiscardUnknownFields()
        if not (name := clean.attribute[pair.key]):
            if len(encoded) <= SHORT:
                as_it_is.keep(encoded, _HOSTS)
            return _HOSTS
        if name in taken:
            return name, None
        pair.key = name
        attribute = name, self._clean_value(name, pair.value)
        if (otherwise := pair.SerializeToString()) != encoded:
            self._rewritten[encoded] = otherwise
        elif len(encoded) <= SHORT:
            self._keep(encoded, attribute)
        return attribute

    def _keep(self, encoded: bytes, attribute: Attribute) -> None:
        """Remember what goes on as it came."""
        if isinstance(attribute[1], tuple):
            _lists.keep(encoded, attribute)
        elif attribute[1] not in self._given:  # else another session may not say it
            as_it_is.keep(encoded, attribute)
            read.keep(encoded, attribute)

    def _clean_value(self, name: str, value: AnyValue) -> Any:
        kind = value.WhichOneof("value")
        if kind == "string_value":
            said = value.string_value
            cleaned = clean.said(name, said, self._given)
            if cleaned != said:
                value.string_value = cleaned
            return cleaned
        return getattr(value, kind) if kind in _NUMBERS else self._clean_further(value)

    def _clean_further(self, value: AnyValue) -> str | tuple[Any, ...]:
        """Leave a list of texts or numbers; what else a sandbox may think of becomes an empty text."""
        if not value.HasField("array_value"):
            value.string_value = ""
            return ""
        items = value.array_value.values
        self.count(len(items))
        if len(items) > clean.MAX_ITEMS:
            del items[clean.MAX_ITEMS :]
        return _clean_items(items)


def _clean_items(items: Any) -> tuple[Any, ...]:
    kinds = [item.WhichOneof("value") for item in items]
    if len(set(kinds)) == 1 and kinds[0] in _NUMBERS:
        return tuple(getattr(item, kinds[0]) for item in items)
    texts: list[str] = []
    for item, kind in zip(items, kinds, strict=True):  # all texts: no backend takes a mixture
        texts.append(clean.text(str(getattr(item, kind))) if kind in _PLAIN else "")
        item.string_value = texts[-1]
    return tuple(texts)
