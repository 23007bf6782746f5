"""Every error answer is a problem document with advice and without internal details."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
from fastapi import FastAPI

from host_client.service._app import described_app
from host_client.service._auth import Authenticator
from host_client.service._models import PATTERN_WORDS
from host_client.service._problems import EVERYWHERE, PROBLEM_RESPONSES, PROBLEMS, ProblemError
from tests.server.shell import NoTokens, client, send_raw, served, slug

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("method", "path", "status", "of"),
    [
        ("GET", "/api/nowhere", 404, "not-found"),
        ("DELETE", "/api/notes", 405, "method-not-allowed"),
        ("GET", "/api/fails/unknown", 404, "not-found"),
        ("GET", "/api/fails/many", 429, "too-many-sessions"),
        ("GET", "/api/fails/store", 503, "store-unavailable"),
        ("GET", "/api/fails/bug", 500, "internal"),
    ],
)
async def test_an_error_is_a_problem(open_shell: FastAPI, method: str, path: str, status: int, of: str) -> None:
    async with client(open_shell) as caller:
        answer = await caller.request(method, path)
    assert answer.status_code == status
    assert slug(answer) == of
    assert answer.json()["instance"] == path
    assert "secret" not in answer.text


async def test_a_full_store_asks_to_come_again(open_shell: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    async with client(open_shell) as caller:
        answer = await caller.get("/api/fails/store")
    assert int(answer.headers["retry-after"]) > 0
    assert "secret.sqlite is full" in caplog.text


async def test_a_wrong_method_is_told_the_right_one(open_shell: FastAPI) -> None:
    async with client(open_shell) as caller:
        answer = await caller.get("/api/notes")
    assert answer.headers["allow"] == "POST"


async def test_a_bug_is_logged_under_the_id_that_the_caller_gets(
    open_shell: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    async with client(open_shell) as caller:
        answer = await caller.get("/api/fails/bug")
    (logged,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert re.fullmatch("[0-9a-f]{16}", answer.json()["incident"])
    assert answer.json()["incident"] in logged.getMessage()
    assert logged.exc_info is not None
    assert isinstance(logged.exc_info[1], ValueError)


async def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(
    open_shell: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(open_shell) as port:
        answer = await send_raw(port, b"GET /api/half HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert answer.status == 200
    assert b"half" in answer.body
    assert not answer.body.endswith(b"0\r\n\r\n")  # the final chunk is missing
    assert "incident" in caplog.text


async def test_a_body_that_does_not_fit_is_told_where_and_not_echoed(open_shell: FastAPI) -> None:
    async with client(open_shell) as caller:
        answer = await caller.post("/api/notes", json={"text": ["sk-secret"], "more": "sk-secret"})
    assert answer.status_code == 422
    assert slug(answer) == "invalid"
    assert [each["where"] for each in answer.json()["errors"]] == ["body.text", "body.more"]
    assert all(each["what"] for each in answer.json()["errors"])
    assert "sk-secret" not in answer.text


@pytest.mark.parametrize(
    ("path", "body", "errors"),
    [
        (
            "/api/sessions",
            {
                "prompt": " ",
                "user_id": "a=b",
                "allowed_tools": ["a\n"],
                "disallowed_tools": "Bash",
                "max_turns": 0,
                "max_budget_usd": -1,
                "metadata": {"a": "b,c"},
                "more": 1,
            },
            {
                "body.prompt": "must contain more than white space",
                "body.user_id": "must contain no comma, equals sign or control character",
                "body.allowed_tools.0": "must contain no control character",
                "body.disallowed_tools": "must be a JSON array",
                "body.max_turns": "must be greater than 0",
                "body.max_budget_usd": "must be greater than 0",
                "body.metadata.a": "must contain no comma or control character",
                "body.more": "this field is unknown",
            },
        ),
        ("/api/sessions", [], {"body": "must be a JSON object"}),
        ("/api/sessions", {}, {"body.prompt": "this field is required"}),
        (
            "/api/sessions/s-1/approvals/a-1",
            {"decision": "maybe", "input_sha256": "xyz"},
            {
                "body.decision": "must be 'allow' or 'deny'",
                "body.input_sha256": "must be a SHA-256 of 64 lower-case hexadecimal digits",
            },
        ),
        ("/api/sessions/s-1/questions/q-1", {"answers": {}}, {"body.answers": "must have at least 1 items"}),
    ],
)
async def test_what_does_not_fit_is_told_in_words(path: str, body: object, errors: dict[str, str]) -> None:
    app = described_app()
    app.state.authenticator = Authenticator(NoTokens(), False)
    app.state.api = None  # validation fails before a route uses it
    async with client(app) as caller:
        answer = await caller.post(path, json=body)
    assert slug(answer) == "invalid"
    assert {each["where"]: each["what"] for each in answer.json()["errors"]} == errors


def test_each_pattern_of_a_body_has_words() -> None:
    patterns = set(re.findall(r'"pattern": ("(?:[^"\\\\]|\\\\.)*")', json.dumps(described_app().openapi())))
    assert patterns
    assert {json.loads(each) for each in patterns} == PATTERN_WORDS.keys()


async def test_of_many_mistakes_only_some_are_told_and_names_are_cut(open_shell: FastAPI) -> None:
    body = {"text": "x", **{f"{'n' * 5000}{n}": 1 for n in range(10)}, **{str(n): 1 for n in range(500)}}
    async with client(open_shell) as caller:
        answer = await caller.post("/api/notes", json=body)
    assert slug(answer) == "invalid"
    assert len(answer.json()["errors"]) == 20
    assert len(answer.content) < 8000


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 422),
        (b"null", 422),
        (b"[" * 30_000, 400),
        (b'{"text": "a", "deep": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400),
        (b'{"text": "a", "deep": ' + b"[" * 100 + b"]" * 100 + b"}", 400),
        (b'{"deep":' * 7_000, 400),
        (b'{"text": "\xff"}', 400),
        (b'{"text": ' + b"9" * 5000 + b"}", 400),
        (b'{"text": NaN}', 400),
        (b'{"text": "a", "deep": 1e999}', 400),
        (rb'{"text": "\ud800"}', 400),  # a lone surrogate cannot be encoded as UTF-8
        (rb'{"text": "a", "deep": {"\udc00": 1}}', 400),
        (rb'{"text": "a", "\u2028\u0000": 1}', 422),
    ],
)
async def test_bad_json_is_the_callers_fault(open_shell: FastAPI, body: bytes, status: int) -> None:
    async with client(open_shell, content_type="application/json") as caller:
        answer = await caller.post("/api/notes", content=body)
    assert answer.status_code == status
    assert slug(answer) == ("bad-request" if status == 400 else "invalid")


async def test_a_hundred_levels_and_a_surrogate_pair_are_good_json(open_shell: FastAPI) -> None:
    body = rb'{"text": "\ud83d\ude00", "deep": ' + b"[" * 99 + b"]" * 99 + b"}"
    async with client(open_shell, content_type="application/json") as caller:
        answer = await caller.post("/api/notes", content=body)
    assert answer.status_code == 200
    assert answer.json()["text"] == "\U0001f600"


async def test_the_instance_is_a_uri_reference(open_shell: FastAPI) -> None:
    async with client(open_shell) as caller:
        answer = await caller.get("/api/" + "%0D%0A%22%E2%82%AC" * 300)
    assert re.fullmatch(r"[A-Za-z0-9/%._~-]{1,4000}", answer.json()["instance"])


def test_every_problem_is_of_the_table() -> None:
    assert {each.status for each in PROBLEMS.values()} <= {
        400,
        401,
        403,
        404,
        405,
        409,
        413,
        415,
        421,
        422,
        429,
        500,
        502,
        503,
    }
    for name, kind in PROBLEMS.items():
        assert re.fullmatch("[a-z]+(-[a-z]+)*", name)
        assert kind.title
        assert kind.when
        assert ProblemError(name).status_code == kind.status


def test_what_is_fixed_wins_over_extras() -> None:
    answer = ProblemError("conflict", "no", type="x", instance="y", decision="deny").response({"path": "/a"})
    assert json.loads(bytes(answer.body)) == {
        "type": "/problems/conflict",
        "title": "Conflict",
        "status": 409,
        "detail": "no",
        "instance": "/a",
        "decision": "deny",
    }


async def test_the_openapi_document_has_problems_in_place_of_fastapis_errors(open_shell: FastAPI) -> None:
    async with client(open_shell) as caller:
        document: dict[str, Any] = (await caller.get("/openapi.json")).json()
    assert "HTTPValidationError" not in json.dumps(document)
    assert {"Problem", "Me", "Login"} <= document["components"]["schemas"].keys()
    answers = document["paths"]["/api/me"]["get"]["responses"]
    assert set(answers) == {"200", *(str(PROBLEMS[each].status) for each in EVERYWHERE)}
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    assert answers["401"]["content"] == {"application/problem+json": problem}
    assert document["paths"]["/api/notes"]["post"]["responses"]["422"]["content"] == {
        "application/problem+json": problem
    }
    assert document["paths"]["/api/me"]["get"]["security"] == [{"bearer": []}, {"cookie": []}]
    assert document["components"]["securitySchemes"].keys() == {"bearer", "cookie"}


def test_problems_of_one_status_stand_together() -> None:
    told = PROBLEM_RESPONSES("key-in-use", "not-found", "already-decided", "not-found")
    assert list(told) == [404, 409]
    assert "`key-in-use`" in told[409]["description"]
    assert "`already-decided`" in told[409]["description"]
