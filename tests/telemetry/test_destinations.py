"""Requests to each backend as bytes on the wire, and the interpretation of its answers."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from agent_runner.contract import otlp as runner_otlp
from agent_runner.contract import readable
from agent_runner.contract.prices import cost
from agent_runner.contract.spans import Span
from host_client.telemetry.export import endpoints
from host_client.telemetry.export.destinations import Delivered, Outcome, Refused, Retry, TooLarge
from host_client.telemetry.export.destinations._answers import of_http, retry_after
from host_client.telemetry.export.destinations._otlp_grpc import OtlpGrpc
from host_client.telemetry.export.destinations._otlp_http import OtlpHttp
from host_client.telemetry.export.destinations.langfuse import langfuse, mapping
from host_client.telemetry.export.destinations.otlp import otlp
from host_client.telemetry.export.endpoints import Compression, Endpoint
from tests.support.certificates import Authority
from tests.support.runs import SpanView, spans_in
from tests.telemetry.receiver import Answer, Failure, Tls, batch, grpc_receiver, http_receiver

NOW = 1_800_000_000.0


@pytest.mark.parametrize("path", ["", "/", "/api/public/otel", "/api/public/otel/", "/api/public/otel/v1/traces"])
def test_langfuse_is_found_and_told_who_we_are(path: str) -> None:
    with http_receiver() as receiver:
        destination = langfuse(endpoints.langfuse(f"{receiver.url}{path}", "pk-lf-1", "sk-lf-2"))
        assert destination.send(batch(1).body) == Delivered()
        destination.close()
    (request,) = receiver.requests
    assert request.path == "/api/public/otel/v1/traces"
    token = request.headers["authorization"].removeprefix("Basic ")
    assert base64.b64decode(token) == b"pk-lf-1:sk-lf-2"
    assert request.headers["x-langfuse-ingestion-version"] == "4"
    assert request.headers["content-type"] == "application/x-protobuf"
    assert request.headers["content-encoding"] == "gzip"


def test_signoz_takes_a_key_over_both_protocols() -> None:
    with http_receiver() as receiver:
        destination = otlp("signoz", endpoints.signoz(receiver.url, "key"))
        assert destination.send(batch(1).body) == Delivered()
        destination.close()
    assert receiver.requests[0].path == "/v1/traces"
    assert receiver.requests[0].headers["signoz-ingestion-key"] == "key"
    assert isinstance(otlp("signoz", endpoints.signoz("http://localhost:4317")), OtlpGrpc)
    assert isinstance(otlp("signoz", endpoints.signoz("https://ingest.us.signoz.cloud:443", "key")), OtlpHttp)


def test_other_backends_get_the_spans_as_they_are() -> None:
    with http_receiver() as receiver:
        destination = otlp("otlp", endpoints.exact(f"{receiver.url}/v1/traces"))
        assert destination.send(batch(2).body) == Delivered()
        destination.close()
    assert receiver.requests[0].body == batch(2).body


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_requests_are_compressed_as_configured(compression: Compression) -> None:
    with http_receiver() as receiver:
        destination = otlp("otlp", Endpoint(url=receiver.url, compression=compression))
        assert destination.send(batch(2).body) == Delivered()
        destination.close()
    assert receiver.requests[0].body == batch(2).body
    assert receiver.requests[0].headers.get("content-encoding", "none") == compression


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_grpc_is_compressed_as_far_as_it_goes(compression: Compression) -> None:
    with grpc_receiver() as receiver:
        destination = otlp("otlp", Endpoint(url=receiver.url, compression=compression, protocol="grpc"))
        assert destination.send(batch(2).body) == Delivered()
        destination.close()
    assert receiver.requests[0].body == batch(2).body


@pytest.mark.parametrize(
    ("proxy", "who"),
    [("http://", None), ("", None), ("http://ada:hush@", b"ada:hush"), ("http://a%40x:p%3aw@", b"a@x:p:w")],
)
def test_a_receiver_is_reached_through_the_environments_proxy(
    monkeypatch: pytest.MonkeyPatch, proxy: str, who: bytes | None
) -> None:
    with http_receiver() as receiver:
        monkeypatch.setenv("http_proxy", proxy + receiver.url.removeprefix("http://"))
        monkeypatch.setenv("no_proxy", "")
        destination = otlp("otlp", endpoints.exact("http://collector.invalid:4318/v1/traces"))
        assert destination.send(batch(1).body) == Delivered()
        destination.close()
    (request,) = receiver.requests
    assert request.path == "http://collector.invalid:4318/v1/traces"
    told = request.headers.get("proxy-authorization")
    assert (base64.b64decode(told.removeprefix("Basic ")) if told else None) == who


def test_a_receiver_that_needs_no_proxy_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "example.com,127.0.0.1,::1")
    with http_receiver() as receiver, http_receiver() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        for url, outcome in ((receiver.url, Delivered), ("http://[::1]:9", Retry)):
            destination = otlp("otlp", endpoints.exact(f"{url}/v1/traces"))
            assert isinstance(destination.send(batch(1).body), outcome)
            destination.close()
    assert (len(receiver.requests), len(proxy.requests)) == (1, 0)


def test_a_proxy_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_receiver() as receiver:
        monkeypatch.setenv("http_proxy", receiver.url)
    monkeypatch.setenv("no_proxy", "")
    destination = otlp("otlp", endpoints.exact("http://collector.invalid:4318/v1/traces"))
    assert destination.send(batch(1).body) == Retry(None, "ConnectionRefusedError: [Errno 111] Connection refused")
    destination.close()


@pytest.mark.parametrize(
    ("proxy", "why"), [("socks5://127.0.0.1:1080", "SOCKS"), ("http://[::1", "HTTP_PROXY"), ("ftp://x", "ftp://x")]
)
def test_a_proxy_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, proxy: str, why: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    destination = otlp("otlp", endpoints.exact("http://collector.invalid:4318/v1/traces"))
    outcome = destination.send(batch(1).body)
    destination.close()
    assert isinstance(outcome, Retry)
    assert outcome.is_misconfigured
    assert why in outcome.why


def test_an_answer_to_one_request_is_not_taken_for_that_of_the_next() -> None:
    with http_receiver() as receiver:
        receiver.script.append(Answer(103))  # an interim answer, after which the final one may still come
        destination = otlp("otlp", Endpoint(url=f"{receiver.url}/v1/traces", timeout=1))
        outcomes = [destination.send(batch(1).body) for _ in range(2)]
        destination.close()
    assert isinstance(outcomes[0], Retry)
    assert outcomes[1] == Delivered()
    assert len({request.port for request in receiver.requests}) == 2


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_certificates_are_the_ones_configured(tmp_path: Path, protocol: endpoints.Protocol) -> None:
    authority = Authority(tmp_path)
    client = authority.issue("client")
    tls = Tls(*authority.issue("server"), authority.certificate)
    with grpc_receiver(tls) if protocol == "grpc" else http_receiver(tls=tls) as receiver:
        url = f"{receiver.url}/v1/traces" if protocol == "http/protobuf" else receiver.url
        known = Endpoint(
            url=url,
            protocol=protocol,
            certificate=str(authority.certificate),
            client_certificate=str(client[0]),
            client_key=str(client[1]),
        )
        destination = otlp("otlp", known)
        assert destination.send(batch(1).body) == Delivered()
        destination.close()
        for stranger in (
            Endpoint(url=url, protocol=protocol, timeout=5),
            Endpoint(url=url, protocol=protocol, timeout=5, certificate=str(authority.certificate)),
        ):
            destination = otlp("otlp", stranger)
            assert isinstance(destination.send(batch(1).body), Retry)
            destination.close()
    assert receiver.times == 1


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_certificate_that_is_not_there_is_told(protocol: endpoints.Protocol) -> None:
    destination = otlp("otlp", Endpoint(url="https://127.0.0.1:1", protocol=protocol, certificate="/no/such.pem"))
    outcome = destination.send(batch(1).body)
    destination.close()
    assert isinstance(outcome, Retry)
    assert outcome.is_misconfigured
    assert "FileNotFoundError" in outcome.why


@pytest.mark.parametrize(
    ("status", "outcome"), [(502, Retry(None, "HTTP 502")), (400, Refused("HTTP 400")), (200, Delivered())]
)
def test_a_body_that_cannot_be_read_leaves_it_to_the_status(status: int, outcome: Outcome) -> None:
    with http_receiver() as receiver:
        receiver.script.append(Answer(status, {"content-encoding": "gzip", "content-type": "text/plain"}, b"plain"))
        destination = otlp("otlp", endpoints.exact(f"{receiver.url}/v1/traces"))
        assert destination.send(batch(1).body) == outcome
        destination.close()
    assert receiver.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("status", "headers", "body", "outcome"),
    [
        (200, {}, b"", Delivered()),
        (202, {"content-type": "application/json"}, b"not json", Delivered()),
        (200, {"content-type": "application/json"}, b'{"partialSuccess": 5}', Delivered()),
        (200, {"content-type": "application/x-protobuf"}, b"\xff\xff", Delivered()),
        (400, {"content-type": "application/json"}, b'{"message": "bad span"}', Refused("HTTP 400", "bad span")),
        (400, {"content-type": "application/json"}, b'{"error": "bad"}', Refused("HTTP 400", '{"error": "bad"}')),
        (422, {"content-type": "text/html"}, b"<p>\x1b[2Jno</p>", Refused("HTTP 422", "<p> [2Jno</p>")),
        (422, {}, b"", Refused("HTTP 422")),
        (413, {}, b"at most 4 MiB", TooLarge("HTTP 413: the request is too large", "at most 4 MiB")),
        (429, {"retry-after": "60"}, b"", Retry(60.0, "HTTP 429")),
        (429, {"retry-after": "soon"}, b"", Retry(None, "HTTP 429")),
        (503, {}, b"", Retry(None, "HTTP 503")),
        (500, {}, b"", Retry(None, "HTTP 500")),
        (408, {}, b"", Retry(None, "HTTP 408")),
        (404, {}, b"", Retry(60.0, "HTTP 404: is the address right?", True)),
        (415, {}, b"", Retry(60.0, "HTTP 415: is the address right?", True)),
        (401, {}, b"who?", Retry(60.0, "HTTP 401: the key is missing or wrong", True, "who?")),
    ],
)
def test_answers_mean_what_the_specification_says(
    status: int, headers: dict[str, str], body: bytes, outcome: Outcome
) -> None:
    assert of_http(status, headers, body, NOW) == outcome


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("secret", ["9f31c07aa2", "ada:hush-hush", "hush-hush"])
def test_an_answer_is_shown_without_the_credentials_of_the_endpoint(protocol: endpoints.Protocol, secret: str) -> None:
    key = {"x-key": "9f31c07aa2", "authorization": f"Basic {base64.b64encode(b'ada:hush-hush').decode()}"}
    answered = f"{'x' * 190} {secret} {'y' * 50}"
    with grpc_receiver() if protocol == "grpc" else http_receiver() as receiver:
        is_http = protocol != "grpc"
        receiver.script.append(Answer(401, body=answered.encode()) if is_http else Failure("UNAUTHENTICATED", answered))
        destination = otlp("otlp", Endpoint(url=receiver.url, protocol=protocol, headers=key))
        outcome = destination.send(batch(1).body)
        destination.close()
    assert isinstance(outcome, Retry)
    assert outcome.answer == f"{'x' * 190} {'ada:' if ':' in secret else ''}[redacte"[:199] + "…"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("60", 60.0),
        (" 0 ", 0.0),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("-5", None),
        ("", None),
        ("soon", None),
        ("Fri, 99 Jan 2027", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


def mapped(name: str, attributes: dict[str, Any], *, tags: tuple[str, ...] = ()) -> SpanView:
    span = Span(name, "a" * 32, "b" * 16, "c" * 16, 1_700_000_000_000_000_000)
    span.end = span.start + 1
    span.attributes = attributes
    (view,) = spans_in(mapping("Production!", tags)(runner_otlp.encode([span], readable.resource("tests"))))
    return view


ALWAYS = {"langfuse.environment": "production-", "langfuse.trace.name": "agent.session"}


def test_langfuse_is_told_the_type_of_every_span() -> None:
    operations = ["chat", "invoke_agent", "execute_tool", "other"]
    types = [
        mapped("x", {"gen_ai.operation.name": operation}).attributes["langfuse.observation.type"]
        for operation in operations
    ]
    assert types == ["generation", "agent", "tool", "span"]


def test_langfuse_gets_the_root_of_a_trace_that_has_a_caller() -> None:
    given = {"user.id": "ann", "tenant.id": "acme", "trace.name": "Mending", "team": "blue", "langfuse.release": "7"}
    span = mapped("agent.session", given, tags=("nightly",))
    assert span.attributes == {
        **given,
        **ALWAYS,
        "langfuse.trace.name": "Mending",
        "langfuse.trace.metadata.team": "blue",
        "langfuse.observation.type": "span",
        "langfuse.trace.metadata.tenant_id": "acme",
        "langfuse.trace.tags": ["nightly", "tenant:acme"],
        "langfuse.internal.as_root": True,
        "langfuse.internal.is_app_root": True,
    }


def test_langfuse_gets_cost_and_first_token_of_a_chat() -> None:
    usage = {
        "gen_ai.usage.input_tokens": 1010,
        "gen_ai.usage.cache_read.input_tokens": 1000,
        "gen_ai.usage.cache_write.input_tokens": 0,
        "gen_ai.usage.output_tokens": 50,
    }
    about = {"gen_ai.operation.name": "chat", "gen_ai.response.model": "claude-sonnet-4-5", **usage}
    attributes = mapped("chat claude-sonnet-4-5", {**about, "gen_ai.response.time_to_first_chunk": 0.5}).attributes
    expected = cost("claude-sonnet-4-5", {"input_tokens": 10, "cache_read_input_tokens": 1000, "output_tokens": 50})
    assert attributes["gen_ai.usage.cost"] == pytest.approx(expected)
    assert json.loads(attributes["langfuse.observation.cost_details"]) == {"total": pytest.approx(expected)}
    first = json.loads(attributes["langfuse.observation.completion_start_time"])
    assert first == "2023-11-14T22:13:20.500000+00:00"
    assert {name: attributes[name] for name in about} == about


@pytest.mark.parametrize("first", [1e300, -1e300, float("nan"), float("inf"), 2**62])
def test_langfuse_is_told_no_time_that_no_calendar_has(first: float) -> None:
    about = {"gen_ai.operation.name": "chat", "gen_ai.response.time_to_first_chunk": first}
    attributes = mapped("chat", about).attributes
    assert "langfuse.observation.completion_start_time" not in attributes
    assert attributes["langfuse.observation.type"] == "generation"


def test_langfuse_gets_bytes_that_are_no_spans_as_they_are() -> None:
    assert mapping("production")(b"nonsense") == b"nonsense"


def test_langfuse_gets_no_made_up_cost() -> None:
    about = {"gen_ai.operation.name": "chat", "gen_ai.response.model": "scripted", "gen_ai.usage.input_tokens": 5}
    assert "gen_ai.usage.cost" not in mapped("chat scripted", about).attributes
    unknown = {"gen_ai.operation.name": "chat", "gen_ai.response.model": "claude-sonnet-4-5"}
    assert "gen_ai.usage.cost" not in mapped("chat", unknown).attributes


def test_langfuse_shows_an_approval_as_what_it_is_and_not_as_the_tool() -> None:
    attributes = mapped("agent.approval", {"gen_ai.tool.name": "Bash", "approval.decision": "deny"}).attributes
    assert attributes == {
        "approval.tool_name": "Bash",
        "approval.decision": "deny",
        **ALWAYS,
        "langfuse.observation.type": "span",
    }


def test_langfuse_keeps_what_was_said_before() -> None:
    given = {"langfuse.observation.type": "guardrail", "langfuse.environment": "mine"}
    attributes = mapped("x", given).attributes
    assert {name: attributes[name] for name in given} == given
