"""Fuzzing of the service with its OpenAPI document: every answer matches the document, and none is a server error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import sampled_from
from schemathesis import checks as common_checks
from schemathesis.specs.openapi import checks as openapi_checks

from host_client.service._app import described_app
from tests.server.conftest import new_service
from tests.server.scripts import TALK
from tests.support.hosts import HostLab
from tests.support.service import Served, ServiceLab, created, rest, stream, until

Make = Callable[[str], tuple[ServiceLab, HostLab]]
EXAMPLES = 25
OPERATIONS = [
    (method.upper(), path) for path, operations in described_app().openapi()["paths"].items() for method in operations
]
_common: Any = common_checks
_openapi: Any = openapi_checks
CHECKS = [
    _common.not_a_server_error,
    _openapi.status_code_conformance,
    _openapi.content_type_conformance,
    _openapi.response_schema_conformance,
]


async def _prepared(client: httpx.AsyncClient) -> tuple[str, str]:
    """Make a closed and an open session; return their ids."""
    async with client:
        ids: list[str] = []
        for closes in (True, False):
            session = await created(client)
            ids.append(session["id"])
            async with stream(client, session["id"]) as events:
                await until(events, "result")
                if closes:
                    await client.delete(f"/api/sessions/{session['id']}")
                    await rest(events)
        return ids[0], ids[1]


@pytest.fixture(scope="module")
def served() -> Any:
    with ExitStack() as stack:
        lab, _ = new_service(stack, TALK)
        service = lab.start("--max-sessions", "3", "--turns-per-minute", "1000000")
        yield service, asyncio.run(_prepared(service.client()))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda each: str(each))
def test_whatever_is_sent_is_answered_as_the_document_says(served: Any, method: str, path: str) -> None:
    service: Served
    service, (closed, opened) = served
    before = len(service.said)
    schema: Any = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operation = schema[path][method]
    # The stream of an open session would not end.
    known = [closed] if path.endswith("/events") or path.startswith("/api/stream/agent/{") else [closed, opened]

    @given(case=operation.as_strategy(), pick=sampled_from([*known, None]))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    def fuzz(case: Any, pick: str | None) -> None:
        if pick is not None and "session_id" in case.path_parameters:
            case.path_parameters["session_id"] = pick
        body: Any = case.body
        if isinstance(body, dict) and "tenant_id" in body:
            body["tenant_id"] = "local"  # all requests for one tenant, whose number of open sessions is limited
        case.call_and_validate(checks=CHECKS, timeout=30)

    fuzz()
    assert not [line for line in service.said[before:] if "incident" in line or "Traceback" in line]
