"""Makes what a sandbox might send as telemetry: what real runners sent, and what no runner sends. Always the same."""

from __future__ import annotations

import base64
import itertools
import json
import math
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.compat.relaying import OTHER_TRACE, TRACE, TRACESTATE

SEED = 20261129
COUNT = 2000

THEN = 1_767_225_600_000_000_000
"""2026-01-01 in nanoseconds: no test runs before."""

CENTURIES = 400 * 365 * 86_400 * 10**9
"""In nanoseconds; what is so far ahead stays ahead."""

OWNED = ("user.id", "tenant.id", "session.id", "user.tier", "org", "region")
FORGED = (
    *OWNED,
    *("langfuse.user.id", "langfuse.trace.name", "langfuse.internal.as_root", "langfuse.observation.cost_details"),
    *("langfuse.environment", "langfuse.", "gen_ai.usage.cost", "ai.telemetry.metadata.userId", "tag.tags"),
    *("tag.tags.more", " user.id", "user.id\n", "user.id\u200b", "User.Id", "user.id.more", "gen_ai.usage.costs", ""),
)
MODELS = ("claude-opus-4-5", "claude-sonnet-4-5", "claude-haiku-4-5-20251001", "gpt-9", "", "x" * 200)
SECRETS = (
    *("sk-ant-api03-AAAAAAAAAAAAAAAA", "pk-lf-12345678", "e2b_0123456789abcdef", "ghp_0123456789abcdefghij"),
    *("AKIA0123456789ABCDEF", "Bearer abcdefgh.ijklmnop", "password = hunter2hunter2", "api_key: 'abcdef'"),
    *("mallory@example.com", "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----", "ada@example.com"),
)
NAMES = (
    *("chat claude-sonnet-4-5", "execute_tool Bash", "agent.execute", "agent.approval", "agent.session"),
    *("sandbox.create", "sandbox.cleanup", " agent.session", "agent.session\n", "agent.session\u200b", "", "ü 😀"),
    *("a\x00b\x1fc\x7fd", "\u202eevil\u2066", "x" * 300, "y" * 5000, "sk-ant-api03-AAAAAAAAAAAAAAAA", "line\r\nline"),
)


class Maker:
    """Makes inputs; every span has an id of its own unless it is to have another's."""

    def __init__(self, real: Sequence[bytes]) -> None:
        self._random = random.Random(SEED)
        self._real = list(real)
        self._ids = itertools.count(1)
        self._used: list[bytes] = []

    def inputs(self) -> list[tuple[str, str]]:
        """Return what they are about and base64, `COUNT` of them."""
        made = [(f"real {number}", encoded(body)) for number, body in enumerate(self._real)]
        often: dict[str, Callable[[], ExportTraceServiceRequest | bytes]] = {
            "forged": self._forged,
            "values": self._values,
            "texts": self._texts,
            "chats": self._chats,
            "numbers": self._numbers,
            "ids": self._ids_of_others,
            "many": self._many,
            "resources": self._resources,
            "events": self._events,
            "wire": self._wire,
            "mutated": self._mutated,
            "altered": self._altered,
        }
        rest: dict[str, Callable[[], ExportTraceServiceRequest | bytes]] = {
            "approvals": self._approvals,
            "nested": self._nested,
            "utf8": self._utf8,
            "fields": self._repeated_fields,
        }
        makers: list[tuple[str, Callable[[], str]]] = [
            (name, partial(_encoded_by, make)) for each in (often, rest, often) for name, make in each.items()
        ]
        makers.append(("base64", self._base64))
        for name, make in itertools.cycle(makers):
            if len(made) >= COUNT - len(HUGE):
                break
            made.append((name, make()))
        return [*made, *((name, encoded(make(self))) for name, make in HUGE.items())]

    # -- parts ------------------------------------------------------------------------------------------

    def id(self) -> bytes:
        """Return a span id that no other has."""
        span_id = b"\xc0" + next(self._ids).to_bytes(7, "big")
        self._used.append(span_id)
        return span_id

    def span(self, **about: Any) -> Span:
        start = THEN + self._random.randrange(10**12)
        given: dict[str, Any] = {
            "trace_id": TRACE,
            "span_id": self.id(),
            "parent_span_id": b"\xab" * 8,
            "name": "execute_tool Bash",
            "kind": Span.SPAN_KIND_INTERNAL,
            "start_time_unix_nano": start,
            "end_time_unix_nano": start + self._random.randrange(10**10),
            "flags": 0x100,
        }
        return Span(**{**given, **about})

    def one_of(self, choices: Sequence[Any]) -> Any:
        return self._random.choice(choices)

    def some(self, choices: Sequence[Any], most: int) -> list[Any]:
        return [self.one_of(choices) for _ in range(self._random.randrange(most + 1))]

    # -- kinds ------------------------------------------------------------------------------------------

    def _forged(self) -> ExportTraceServiceRequest:
        names = self.some(FORGED, 8)
        attributes = [pair(name, self.one_of(("mallory", 7, True, 1.5, ("a", "b")))) for name in names]
        attributes.insert(self._random.randrange(len(attributes) + 1), pair("plain", "stays"))
        return request(self.span(attributes=attributes, name=self.one_of(NAMES)))

    def _values(self) -> ExportTraceServiceRequest:
        values = ("text", "", 0, -1, 2**63 - 1, -(2**63), True, False, 0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324)
        lists = ((), ("a",), (1, 2), (1.5, 2.5), (True, False), ("a", 1), (1, 1.5), ("a" * 2000, "b\n"), ("",))
        attributes = [pair(f"value.{number}", self.one_of(values)) for number in range(self._random.randrange(12))]
        attributes += [pair(f"list.{number}", self.one_of(lists)) for number in range(self._random.randrange(6))]
        attributes += [pair("value.0", "again")] * self._random.randrange(2)
        self._random.shuffle(attributes)
        return request(self.span(attributes=attributes), self.span(attributes=attributes[:3]))

    def _texts(self) -> ExportTraceServiceRequest:
        words = (*SECRETS, "plain words ", "control\x00\x07 \u2028 ", "ü" * 40, "\u202e\u200b")
        text = "".join(self.some(words, 6)) * self.one_of((1, 1, 1, 20, 200))
        cut = "." * (self.one_of((100, 200, 1024, 8192)) - self._random.randrange(20))
        content = self.one_of(("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.tool.call.arguments"))
        role = self.one_of(("user", "assistant", "tool", SECRETS[0]))
        message = json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}], ensure_ascii=False)
        attributes = [
            pair("note", text),
            pair("cut", cut + self.one_of(SECRETS)),
            pair(content, self.one_of((message, message[:-1], text, "[]", "{}", "null", '"x"'))),
            pair("gen_ai.tool.call.result", text + cut),
            pair(text[:120] or "key", "a long key"),
        ]
        status = Status(code=self.one_of((0, 1, 2)), message=text)
        return request(self.span(attributes=attributes, name=text or self.one_of(NAMES), status=status))

    def _chats(self) -> ExportTraceServiceRequest:
        odd = (10, 0, -5, 10**12, 10**18, 1.5, math.nan, "many", True, ("1",))
        operation = self.one_of(("chat", "chat", "chat", "invoke_agent", "execute_tool", "other", 7, ("chat",)))
        attributes = [pair("gen_ai.operation.name", operation)]
        for name in ("input_tokens", "output_tokens", "cache_read.input_tokens", "cache_creation.input_tokens"):
            if self._random.random() < 0.8:
                usual = self._random.randrange(5000)
                attributes.append(
                    pair(f"gen_ai.usage.{name}", usual if self._random.random() < 0.8 else self.one_of(odd))
                )
        models = [name for name in ("gen_ai.request.model", "gen_ai.response.model") if self._random.random() < 0.7]
        attributes += [pair(name, self.one_of((*MODELS, 7))) for name in models]
        first = self.one_of((0.25, 1, 0, -1.0, 1e300, math.nan, math.inf, "soon", True))
        attributes.append(pair("gen_ai.response.time_to_first_chunk", first))
        attributes += [pair("tenant.id", "forged"), pair("gen_ai.response.finish_reasons", ("tool_use",))]
        return request(self.span(attributes=attributes, name="chat claude-sonnet-4-5", kind=Span.SPAN_KIND_CLIENT))

    def _approvals(self) -> ExportTraceServiceRequest:
        tools = [pair("gen_ai.tool.name", name) for name in self.some(("Bash", "Write", 7), 2)]
        about = [pair("approval.decision", self.one_of(("allow", "deny"))), pair("approval.tool_name", "mine")]
        decided = pair("approval.decided_by", self.one_of(("ada@example.com", "eve@example.com", "grace")))
        return request(
            self.span(name="agent.approval", attributes=[*tools, *about[: self._random.randrange(3)], decided])
        )

    def _numbers(self) -> ExportTraceServiceRequest:
        times = (0, 1, THEN, THEN + 10**9, 2**64 - 1, 2**63, THEN + CENTURIES)
        about: dict[str, Any] = {
            "start_time_unix_nano": self.one_of(times),
            "end_time_unix_nano": self.one_of(times),
            "kind": self.one_of((0, 1, 3, 5, 6, 77, -1)),
            "flags": self.one_of((0, 0x100, 0x200, 0x300, 0x301, 2**32 - 1)),
            "dropped_attributes_count": self.one_of((0, 1, 2**32 - 1)),
            "dropped_events_count": self.one_of((0, 2**32 - 1)),
            "dropped_links_count": self.one_of((0, 7)),
            "trace_state": self.one_of(("", TRACESTATE, "vendor=y", "=,bad", "x" * 600, TRACESTATE + " ")),
            "status": Status(code=self.one_of((0, 1, 2, 3, 99, -1)), message=self.one_of(("", "failed", *SECRETS))),
        }
        return request(self.span(**about))

    def _ids_of_others(self) -> ExportTraceServiceRequest:
        used = self.one_of(self._used)
        mine = self.id()
        about: dict[str, Any] = self.one_of(
            (
                {"span_id": used},
                {"span_id": mine},
                {"trace_id": OTHER_TRACE},
                {"trace_id": b"X" * 16},
                {"trace_id": TRACE[:15]},
                {"trace_id": b""},
                {"span_id": b""},
                {"span_id": bytes(8)},
                {"span_id": mine[:7]},
                {"parent_span_id": b""},
                {"parent_span_id": bytes(8)},
                {"parent_span_id": b"P" * 9},
                {"parent_span_id": mine},
            )
        )
        twice = [self.span(span_id=mine)] if self._random.random() < 0.3 else []
        link = Span.Link(trace_id=TRACE, span_id=used, attributes=[pair("user.id", "mallory")])
        return request(self.span(), self.span(**about, links=[link] * self._random.randrange(2)), *twice, self.span())

    def _many(self) -> ExportTraceServiceRequest:
        count = self.one_of((1, 63, 64, 127, 128, 129, 130, 200))
        attributes = [pair(f"k{number % 150}", number) for number in range(count)]
        items = pair("items", tuple(self.one_of((("a",), (1,), (2.5,)))) * self.one_of((127, 128, 129, 300)))
        events = [Span.Event(name=f"e{number}", time_unix_nano=THEN) for number in range(count % 131)]
        first = self.one_of(([items], [], [pair("user.id", "x")] * 3))
        return request(self.span(attributes=[*first, *attributes], events=events))

    def _nested(self) -> bytes:
        value = _sized(1, b"deep")
        for _ in range(self.one_of((1, 2, 5, 40, 90, 95, 101, 150))):  # protobuf's own limit is about a hundred
            if self._random.random() < 0.5:
                value = _sized(5, _sized(1, value))
            else:
                value = _sized(6, _sized(1, _sized(1, b"user.id") + _sized(2, value)))
        mixed = AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue(), AnyValue(bytes_value=b"x")]))
        odd = [
            KeyValue(key="bytes", value=AnyValue(bytes_value=b"\x00\xff")),
            KeyValue(key="nothing"),
            KeyValue(key="mixed", value=mixed),
            KeyValue(key="map", value=AnyValue(kvlist_value=KeyValueList(values=[pair("user.id", "mallory")]))),
        ]
        span = self.span(attributes=odd[: self._random.randrange(5)]).SerializeToString()
        return _sized(1, _sized(2, _sized(2, span + _sized(9, _sized(1, b"deep") + _sized(2, value)))))

    def _resources(self) -> ExportTraceServiceRequest:
        names = (
            "service.name",
            "service.version",
            "telemetry.sdk.name",
            "host.name",
            "deployment.environment",
            "user.id",
        )
        made = ExportTraceServiceRequest()
        for _ in range(self._random.randrange(1, 4)):
            of_resource = made.resource_spans.add(schema_url=self.one_of(("", "https://schema", "x" * 300)))
            values = ("agent_runner", "", 7, ("a",), SECRETS[0], "x" * 3000)
            of_resource.resource.attributes.extend(pair(self.one_of(names), self.one_of(values)) for _ in range(4))
            of_resource.resource.dropped_attributes_count = self.one_of((0, 5))
            for _ in range(self._random.randrange(3)):
                of_scope = of_resource.scope_spans.add(schema_url=self.one_of(("", "https://scope")))
                of_scope.scope.name = self.one_of(("sandspan.agent_runner", "", "mine\n", "n" * 500))
                of_scope.scope.version = self.one_of(("0.1.0", "", SECRETS[2]))
                of_scope.scope.attributes.extend([pair("user.id", "mallory")] * self._random.randrange(2))
                of_scope.spans.extend(self.span() for _ in range(self._random.randrange(3)))
        return made

    def _events(self) -> ExportTraceServiceRequest:
        events: list[Span.Event] = []
        for _ in range(self._random.randrange(1, 6)):
            names = self.some((*FORGED, "retry.attempt", "error.type"), 4)
            attributes = [pair(name, self.one_of(("x", 1, 2.5, *SECRETS))) for name in names]
            moment = self.one_of((0, THEN, 2**64 - 1))
            dropped = self.one_of((0, 3, 2**32 - 1))
            event = Span.Event(name=self.one_of(NAMES), time_unix_nano=moment, attributes=attributes)
            event.dropped_attributes_count = dropped
            events.append(event)
        return request(self.span(events=events))

    def _wire(self) -> bytes:
        """Put a field that does not belong there into a span, an attribute, a value, a resource or the request."""
        number = self.one_of((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 100, 2**29 - 1))
        odd = self.one_of((_varint_field, _fixed64, _fixed32, _bytes_field, _group))(number, self._random)
        place = self._random.randrange(6)
        span = self.span(attributes=[pair("plain", "stays")]).SerializeToString()
        attribute = pair("odd", "value").SerializeToString()
        if place == 0:
            span += odd
        elif place == 1:
            span = odd + span
        elif place == 2:
            span += _sized(9, attribute + odd)
        elif place == 3:
            span += _sized(9, _sized(1, b"key") + _sized(2, odd))
        scope = _sized(2, span) + (odd if place == 4 else b"")
        return _sized(1, _sized(2, scope)) + (odd if place == 5 else b"")

    def _utf8(self) -> bytes:
        bad = self.one_of((b"\xff", b"\xc3", b"\xed\xa0\x80", b"ok\xfe", b"\xf4\x90\x80\x80", b"\xc0\xaf"))
        place = self._random.randrange(7)
        attribute = {
            0: _sized(1, b"key" + bad) + _sized(2, _sized(1, b"value")),
            1: _sized(1, b"key") + _sized(2, _sized(1, b"value" + bad)),
            2: _sized(1, b"user.id" + bad) + _sized(2, _sized(1, b"value")),
        }.get(place, pair("plain", "stays").SerializeToString())
        span = self.span().SerializeToString() + _sized(9, attribute)
        if place == 3:
            span += _sized(5, b"name" + bad)
        if place == 4:
            span += _sized(15, _sized(2, b"message" + bad) + b"\x18\x02")
        if place == 5:
            span += _sized(3, bad)
        scope = _sized(1, _sized(1, b"scope" + bad)) if place == 6 else b""
        return _sized(1, _sized(2, scope + _sized(2, span)))

    def _repeated_fields(self) -> bytes:
        """Say what is to be said once several times: the last counts, or messages are merged."""
        span = self.span(
            attributes=[pair("a", 1)], status=Status(code=Status.STATUS_CODE_ERROR, message="first")
        ).SerializeToString()
        more = self.span(span_id=self._used[-1], name=self.one_of(NAMES), attributes=[pair("a", 2), pair("b", 3)])
        value = _sized(1, b"key") + _sized(2, _sized(1, b"text")) + _sized(2, b"\x18\x07") + _sized(1, b"other")
        body = span + self.one_of((more.SerializeToString(), _sized(9, value), _sized(15, b"\x18\x01"), b""))
        scope = _sized(1, _sized(1, b"one")) + _sized(1, _sized(2, b"two")) + _sized(2, body)
        resource = _sized(1, _sized(1, pair("service.name", "one").SerializeToString()))
        return _sized(1, resource + resource.replace(b"one", b"two") + _sized(2, scope)) * self.one_of((1, 1, 2))

    def _mutated(self) -> bytes:
        """Change, remove or add some bytes of what a real runner sent."""
        body = bytearray(self._with_ids_of_its_own(self.one_of(self._real)))
        for _ in range(self._random.randrange(1, 4)):
            at = self._random.randrange(len(body))
            how = self._random.randrange(4)
            if how == 0:
                body[at] = self._random.randrange(256)
            elif how == 1:
                body[at] ^= 1 << self._random.randrange(8)
            elif how == 2:
                del body[at : at + self._random.randrange(1, 4)]
            else:
                body[at:at] = self._random.randbytes(self._random.randrange(1, 4))
        return bytes(body)

    def _altered(self) -> ExportTraceServiceRequest:
        """Add to the spans that a real runner sent."""
        made = ExportTraceServiceRequest.FromString(self._with_ids_of_its_own(self.one_of(self._real)))
        for of_resource in made.resource_spans:
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    names = self.some((*FORGED, "gen_ai.operation.name", "error.type", "note"), 3)
                    span.attributes.extend(pair(name, self.one_of(("mallory", 7, "chat"))) for name in names)
                    if self._random.random() < 0.2:
                        span.name = self.one_of(NAMES)
        return made

    def _with_ids_of_its_own(self, body: bytes) -> bytes:
        for _, span in spans_in(ExportTraceServiceRequest.FromString(body)):
            body = body.replace(span.span_id, self.id())
        return body

    def _base64(self) -> str:
        good = encoded(request(self.span()))
        return self.one_of(
            (
                good,
                *(good + "\n", good.rstrip("="), good[:-4], f" {good}", good.replace("A", "-", 1), good.lower()),
                *("", "=", "AAAA", "not base64!", "ü", "Cg==", "CgA=", "\x00"),
                base64.b64encode(self._random.randbytes(self._random.randrange(1, 60))).decode(),
            )
        )

    def many_spans(self, count: int, **about: Any) -> ExportTraceServiceRequest:
        """Return a request of so many spans alike, which are too many."""
        return request(*[self.span(**about)] * count)


HUGE: dict[str, Callable[[Maker], ExportTraceServiceRequest | bytes]] = {
    "huge: spans": lambda maker: maker.many_spans(10_001),
    "huge: resources": lambda _: b"\x0a\x00" * 10_001,
    "huge: scopes": lambda _: b"\x0a\x02\x12\x00" * 5_001,
    "huge: empty resources": lambda maker: request(maker.span()).SerializeToString() + b"\x0a\x00" * 9_000,
    "huge: attributes": lambda maker: maker.many_spans(800, attributes=[KeyValue(key="user.id")] * 128),
    "huge: events": lambda maker: maker.many_spans(800, events=[Span.Event()] * 128),
    "huge: items": lambda maker: request(maker.span(attributes=[pair(f"l{n}", (1,) * 1500) for n in range(80)])),
    "huge: content": lambda maker: request(
        maker.span(attributes=[pair("gen_ai.output.messages", "long " * 60_000), pair("note", "long " * 60_000)])
    ),
    "huge: name": lambda maker: request(maker.span(name="long " * 60_000, trace_state="x" * 300_000)),
    "huge: keys": lambda maker: request(maker.span(attributes=[pair("long " * 9_000, "value")] * 3)),
}
"""What is too much of something, or much."""


def _encoded_by(make: Callable[[], ExportTraceServiceRequest | bytes]) -> str:
    return encoded(make())


def encoded(made: ExportTraceServiceRequest | bytes) -> str:
    """Return a request as an event has it."""
    return base64.b64encode(made if isinstance(made, bytes) else made.SerializeToString(deterministic=True)).decode()


def request(*spans: Span) -> ExportTraceServiceRequest:
    """Return spans as a runner sends them."""
    made = ExportTraceServiceRequest()
    of_resource = made.resource_spans.add()
    of_resource.resource.attributes.extend([pair("service.name", "agent_runner"), pair("service.version", "0.1.0")])
    of_scope = of_resource.scope_spans.add()
    of_scope.scope.name, of_scope.scope.version = "sandspan.agent_runner", "0.1.0"
    of_scope.spans.extend(spans)
    return made


def spans_in(made: ExportTraceServiceRequest) -> Iterator[tuple[int, Span]]:
    """Yield the spans of a request, numbered."""
    spans = [span for each in made.resource_spans for of_scope in each.scope_spans for span in of_scope.spans]
    yield from enumerate(spans)


def pair(key: str, value: Any) -> KeyValue:
    """Return an attribute."""
    return KeyValue(key=key, value=_value(value))


def _value(value: Any) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=value)
        case _:
            return AnyValue(array_value=ArrayValue(values=[_value(item) for item in value]))


# -- the wire format, by hand -------------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*made, number))


def _sized(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _varint_field(field: int, chance: random.Random) -> bytes:
    return _varint(field << 3) + chance.choice((b"\x07", b"\xff" * 9 + b"\x01", b"\xff" * 11, b"\x80\x80\x00"))


def _fixed64(field: int, chance: random.Random) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<Q", chance.getrandbits(64))


def _fixed32(field: int, chance: random.Random) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<I", chance.getrandbits(32))


def _bytes_field(field: int, chance: random.Random) -> bytes:
    return _sized(field, chance.choice((b"", b"abc", b"\x0a\x00", b"\x00" * 20, chance.randbytes(8))))


def _group(field: int, chance: random.Random) -> bytes:
    end = field if chance.random() < 0.8 else field + 1
    return _varint(field << 3 | 3) + _varint(1 << 3) + b"\x07" + _varint(end << 3 | 4)
