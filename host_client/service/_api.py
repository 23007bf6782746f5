"""The routes of sessions: the parameters, required role and answer of each."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Annotated, Any, cast
from weakref import WeakValueDictionary

import msgspec
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel

from agent_runner.contract.protocol import Answer, Approval
from agent_runner.contract.sanitize import brief, single_line
from agent_runner.contract.trace_context import TraceContext, baggage_from_headers, from_headers
from host_client.errors import (
    ConfigurationError,
    FileMissingError,
    FileRefusedError,
    FileTooLargeError,
    SandboxError,
    SessionClosedError,
)
from host_client.store.base import Status, StoredSession

from ._attachments import files_of
from ._auth import Approver, Operator, Principal, Reader
from ._body import JsonRoute
from ._controls import CommandView, ControlBody, command_of
from ._downloads import MAX_FILE, MOST_PICTURES_WAITING, FileAnswer, Transfers, disposition
from ._limits import (
    RecordedAnswer,
    budget_of,
    check_budget,
    check_prompt,
    check_turn,
    idempotent,
    request_digest,
)
from ._models import (
    AnswerQuestion,
    CreateSession,
    Decide,
    DecisionView,
    LoggedEvent,
    LogPage,
    SendTurn,
    SessionPage,
    SessionView,
    TurnView,
    approval_of,
    decision_view,
    session_view,
)
from ._problems import EVERYWHERE, PROBLEM_RESPONSES, WITH_BODY, ProblemError
from ._service import DecidedError, MismatchError, NotFoundError, Service, SessionOverError
from ._sse import EventStream
from .config import ServiceConfig

LOCAL_TENANT = "local"
"""The tenant of sessions that are created without a token and without a tenant."""

SPANS_LEFT_OUT = "x-spans-left-out"
"""Header with the number of spans that an answered trace leaves out."""
MAX_PAGE = 200
MAX_LOG_PAGE = 5000
MAX_NUMBER = 10**15
"""More than any event's number, and exact in every JSON parser."""

SessionId = Annotated[str, Path(min_length=1, max_length=64)]
RequestId = Annotated[str, Path(min_length=1, max_length=64)]
After = Annotated[
    int | None, Query(ge=0, le=MAX_NUMBER, description="Number of the last event that was read; 0 for all events.")
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", description="A repeated request with this key gets the first one's answer, for a day."
    ),
]


PROBLEM_OF: Mapping[type[Exception], str] = {
    NotFoundError: "not-found",
    MismatchError: "input-changed",
    SessionOverError: "session-closed",
    SessionClosedError: "conflict",
    FileMissingError: "not-found",
    FileTooLargeError: "too-large",
    FileRefusedError: "invalid",
    SandboxError: "sandbox-failed",
}
"""The problem with which a route answers an error; its detail is the error's message."""


# The parameters only put the headers into the OpenAPI document. The values are read from the raw headers, as FastAPI
# gives only the first of several headers with the same name.
async def _caller(
    request: Request,
    traceparent: Annotated[
        str | None, Header(description="W3C: the caller's span, the parent of the session or turn.")
    ] = None,
    tracestate: Annotated[str | None, Header()] = None,
) -> TraceContext | None:
    return from_headers(request.headers.raw)


async def _baggage(
    request: Request,
    baggage: Annotated[str | None, Header(description="W3C: `user.id` is used if the body names no user.")] = None,
) -> dict[str, str]:
    return baggage_from_headers(request.headers.raw)


Caller = Annotated[TraceContext | None, Depends(_caller)]
Baggage = Annotated[dict[str, str], Depends(_baggage)]


class Api:
    """The service and its limits, as all routes use them."""

    def __init__(self, service: Service, config: ServiceConfig) -> None:
        self.service = service
        self.limits = config.limits
        self.trace_url = config.trace_url
        self._session_options = config.session_options
        self.downloads = Transfers()
        self.attachments = Transfers(most_waiting=MOST_PICTURES_WAITING)
        self._budgets = WeakValueDictionary[str, asyncio.Lock]()

    def view(self, stored: StoredSession) -> SessionView:
        """Return a session as the API shows it."""
        return session_view(stored, self.trace_url)

    async def stored(self, session_id: str, principal: Principal) -> StoredSession:
        """Return a session of the principal's tenant; raise `NotFoundError` for any other."""
        return await self.service.get(session_id, principal.tenant_id)

    def traced(self, stored: StoredSession) -> dict[str, str]:
        """Return the headers that name the session's trace."""
        root = stored.record.root
        return {"traceresponse": f"00-{root.trace_id}-{root.span_id}-01", "x-trace-id": root.trace_id}

    async def once(
        self,
        request: Request,
        principal: Principal,
        key: str | None,
        action: Callable[[str | None], Awaitable[RecordedAnswer]],
    ) -> Response:
        """Carry out an action once for an ``Idempotency-Key``; see `idempotent`."""
        path = f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path
        digest = request_digest(request.method, path, await request.body())
        tenant_id = tenant_of(principal)
        answer = await idempotent(self.service.store, tenant_id, key, digest, action)
        return answer.response()

    def check_open(self) -> None:
        """Raise `ProblemError` (503) if the service is being stopped."""
        if self.service.closing:
            raise ProblemError("shutting-down", headers={"retry-after": "5"})

    async def create(
        self,
        body: CreateSession,
        principal: Principal,
        caller: TraceContext | None,
        baggage: Mapping[str, str],
        session_id: str | None,
    ) -> StoredSession:
        """Create a session, or return the one of this id that an earlier attempt of the request created."""
        if session_id is not None and (existing := await self.service.store.get(session_id)) is not None:
            return existing
        request = body.model_dump(exclude_defaults=True, exclude={"attachments"})
        tenant_id = principal.tenant_id or body.tenant_id or LOCAL_TENANT
        request["tenant_id"] = tenant_id
        check_prompt(body.prompt, self.limits)
        self._check_options(body.options)
        self.check_open()
        if body.user_id is None and (user := baggage.get("user.id")):
            request["user_id"] = single_line(user, 200)
        await check_turn(self.service.store, tenant_id, self.limits)
        files = await files_of(self.service.store, tenant_of(principal), body.prompt, body.attachments)
        async with self._budgeting(tenant_id):
            budget = await budget_of(self.service.store, tenant_id, self.limits, body.max_budget_usd)
            if budget is not None:
                request["max_budget_usd"] = budget
            try:
                return await self.service.create(
                    request,
                    files=files,
                    most_bytes=self.limits.file_bytes_per_tenant,
                    tenant_id=tenant_id,
                    by=principal.name,
                    caller=caller,
                    most_open=self.limits.sessions_per_tenant,
                    session_id=session_id,
                )
            except ConfigurationError as error:
                raise ProblemError("invalid", str(error)) from None

    def _check_options(self, options: Mapping[str, object]) -> None:
        """Raise `ProblemError` for an option of the SDK that the service does not allow."""
        if fields := sorted(options.keys() & CreateSession.model_fields.keys()):
            raise ProblemError("invalid", f"options: {fields[0]} is a field of the request itself")
        if refused := sorted(options.keys() - self._session_options):
            allowed = ", ".join(sorted(self._session_options)) or "none"
            raise ProblemError("invalid", f"options: {brief(refused[0])} cannot be set here; allowed: {allowed}")
        servers = options.get("mcp_servers")
        if isinstance(servers, dict) and any(
            isinstance(each, str) for each in cast("dict[str, Any]", servers).values()
        ):
            raise ProblemError(
                "invalid", "options: mcp_servers takes programs and addresses here, no code of the runner"
            )

    def _budgeting(self, tenant_id: str) -> AbstractAsyncContextManager[object]:
        """Let a tenant with a budget create one session at a time, so that two do not get the same money."""
        if self.limits.usd_per_tenant_day is None:
            return nullcontext()
        return self._budgets.setdefault(tenant_id, asyncio.Lock())

    async def send(
        self,
        stored: StoredSession,
        body: SendTurn,
        principal: Principal,
        caller: TraceContext | None,
        turn_id: str | None,
    ) -> str:
        """Queue a turn with this id (None: a new one); return its id."""
        check_prompt(body.text, self.limits)
        self.check_open()
        await check_turn(self.service.store, stored.record.tenant_id, self.limits)
        await check_budget(self.service.store, stored.record.tenant_id, self.limits)
        return await self.service.send(
            stored,
            body.text,
            files=await files_of(self.service.store, tenant_of(principal), body.text, body.attachments),
            most_bytes=self.limits.file_bytes_per_tenant,
            by=principal.name,
            caller=caller,
            turn_id=turn_id,
        )

    async def decide(self, stored: StoredSession, reply: Approval | Answer) -> DecisionView:
        """Record a decision; raise `ProblemError` (409) with the first decision if there was one before."""
        try:
            return decision_view(await self.service.decide(stored, reply))
        except DecidedError as error:
            view = decision_view(error.decision)
            who = f"by {view.decided_by}" if view.decided_by else "before anyone decided"
            raise ProblemError("already-decided", f"{view.decision} {who}", **view.model_dump()) from None

    async def stream(self, stored: StoredSession, after: int) -> Response:
        """Return the stream of a session's events after a number; 204 if it was closed and all events were read."""
        state = stored.state
        if after > state.last_event_id:
            raise ProblemError("invalid", f"there is no event {after} yet: the last one is {state.last_event_id}")
        if state.is_closed and after == state.last_event_id:
            return Response(status_code=204)  # an EventSource does not reconnect after a 204
        for what, most, count in (
            ("session", self.limits.readers_per_session, self.service.readers(stored.record.id)),
            ("tenant", self.limits.readers_per_tenant, self.service.readers_of(stored.record.tenant_id)),
        ):
            if most is not None and count >= most:
                raise ProblemError("too-many-readers", f"the {what} may have {most} open streams: close one first")
        reader = self.service.reader(stored, after)
        return EventStream(
            reader,
            headers=self.traced(stored),
            patience=self.service.pace.patience,
            on_end=lambda why: self.service.left(stored, reader, why),
        )


async def _api(request: Request) -> Api:
    return request.app.state.api


TheApi = Annotated[Api, Depends(_api)]


def tenant_of(principal: Principal) -> str:
    """Return the tenant that a caller acts for by itself."""
    return principal.tenant_id or LOCAL_TENANT


def _by(principal: Principal, given: str | None) -> str:
    """Return the name of the person who decides; a body may only name one if the caller has no token."""
    return given or principal.name if principal.tenant_id is None else principal.name


router = APIRouter(prefix="/api", tags=["sessions"], route_class=JsonRoute, responses=PROBLEM_RESPONSES(*EVERYWHERE))
_BODY = PROBLEM_RESPONSES(*WITH_BODY)
_GONE = PROBLEM_RESPONSES("not-found")
_OVER = PROBLEM_RESPONSES("not-found", "session-closed")
_KEYED = PROBLEM_RESPONSES("key-in-use", "key-reused", "invalid")
_TURNS = PROBLEM_RESPONSES(
    "too-many-turns", "too-many-uploads", "too-many-files", "budget-exceeded", "too-many-attempts"
)
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Events; `id` is an event's number."},
    204: {"description": "The session is closed and all its events have been read."},
    **_GONE,
}
_CREATED: dict[int | str, dict[str, Any]] = {**_BODY, **_KEYED, **_TURNS}
_DECIDED: dict[int | str, dict[str, Any]] = {
    **_BODY,
    **_GONE,
    **PROBLEM_RESPONSES("already-decided", "input-changed", "invalid"),
}


@router.post(
    "/stream/agent/init",
    status_code=201,
    response_model=SessionView,
    responses=_CREATED,
    name="init_stream",
    description="Do what `POST /api/sessions` does.",
)
@router.post("/sessions", status_code=201, response_model=SessionView, responses=_CREATED)
async def create_session(
    request: Request,
    api: TheApi,
    body: CreateSession,
    principal: Operator,
    caller: Caller,
    baggage: Baggage,
    key: IdempotencyKey = None,
) -> Response:
    """Create a session and queue its first turn. The session starts in the background; its events show its progress."""

    async def make(session_id: str | None) -> RecordedAnswer:
        stored = await api.create(body, principal, caller, baggage, session_id)
        headers = {"location": f"/api/sessions/{stored.record.id}", **api.traced(stored)}
        return _answer(api.view(stored), 201, headers)

    return await api.once(request, principal, key, make)


@router.get("/sessions", responses=PROBLEM_RESPONSES("invalid"))
async def list_sessions(
    api: TheApi,
    principal: Reader,
    status: Annotated[Status | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    before: Annotated[str | None, Query(max_length=200, description="`next` of the previous page.")] = None,
) -> SessionPage:
    """List the tenant's sessions, newest first."""
    sessions, more = await api.service.store.page(principal.tenant_id, status=status, limit=limit, before=before)
    return SessionPage(sessions=[api.view(each) for each in sessions], next=more)


@router.get("/sessions/{session_id}", response_model=SessionView, responses=_GONE)
async def get_session(api: TheApi, session_id: SessionId, principal: Reader) -> Response:
    """Return a session as it is now."""
    stored = await api.stored(session_id, principal)
    return _json(api.view(stored), 200, api.traced(stored))


@router.post(
    "/sessions/{session_id}/turns",
    status_code=202,
    response_model=TurnView,
    responses={**_BODY, **_OVER, **_TURNS, **PROBLEM_RESPONSES("session-closed", "key-in-use", "key-reused")},
)
async def send_turn(
    request: Request,
    api: TheApi,
    session_id: SessionId,
    body: SendTurn,
    principal: Operator,
    caller: Caller,
    key: IdempotencyKey = None,
) -> Response:
    """Queue the next turn. It begins when the current turn has ended, and never answers an approval."""
    stored = await api.stored(session_id, principal)

    async def send(turn_id: str | None) -> RecordedAnswer:
        if turn_id is None or not await api.service.was_sent(stored, turn_id):
            turn_id = await api.send(stored, body, principal, caller, turn_id)
        view = TurnView(turn_id=turn_id, session_id=session_id, trace_id=(caller or stored.record.root).trace_id)
        return _answer(view, 202, api.traced(stored))

    return await api.once(request, principal, key, send)


@router.post("/sessions/{session_id}/approvals/{approval_id}", responses=_DECIDED)
async def decide_approval(
    api: TheApi, session_id: SessionId, approval_id: RequestId, body: Decide, principal: Approver
) -> DecisionView:
    """Allow or deny one tool call. Only the first decision counts; it is bound to the input that was shown."""
    approval = approval_of(approval_id, body, _by(principal, body.decided_by))
    return await api.decide(await api.stored(session_id, principal), approval)


@router.post("/sessions/{session_id}/questions/{question_id}", responses=_DECIDED)
async def answer_question(
    api: TheApi, session_id: SessionId, question_id: RequestId, body: AnswerQuestion, principal: Approver
) -> DecisionView:
    """Answer the agent's question. Only the first answer counts."""
    answers = {name: ", ".join(each) if isinstance(each, list) else each for name, each in body.answers.items()}
    answer = Answer(question_id=question_id, answers=answers, decided_by=_by(principal, body.decided_by))
    return await api.decide(await api.stored(session_id, principal), answer)


@router.post("/sessions/{session_id}/interrupt", status_code=202, response_model=SessionView, responses=_OVER)
async def interrupt_turn(api: TheApi, session_id: SessionId, principal: Operator) -> Response:
    """End the current turn, or between turns all background tasks; the session goes on."""
    stored = await api.stored(session_id, principal)
    await api.service.interrupt(stored, by=principal.name)
    return _json(api.view(stored), 202, api.traced(stored))


@router.post("/sessions/{session_id}/commands", status_code=202, responses={**_BODY, **_OVER})
async def control_agent(api: TheApi, session_id: SessionId, body: ControlBody, principal: Operator) -> CommandView:
    """Change or ask the running agent; the `command_result` event with the answered id has the outcome."""
    stored = await api.stored(session_id, principal)
    command = command_of(body, principal.name)
    await api.service.control(stored, command)
    return CommandView(command_id=command.command_id or "")


@router.post("/sessions/{session_id}/close", status_code=202, response_model=SessionView, responses=_GONE)
@router.delete("/sessions/{session_id}", status_code=202, response_model=SessionView, responses=_GONE)
async def close_session(api: TheApi, session_id: SessionId, principal: Operator) -> Response:
    """End the session and remove its sandbox. Closing it again is no error; its log and trace are kept for days."""
    stored = await api.stored(session_id, principal)
    await api.service.close(stored, by=principal.name)
    return _json(api.view(stored), 202, api.traced(stored))


@router.get(
    "/sessions/{session_id}/files/{path:path}",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        **PROBLEM_RESPONSES("not-found", "conflict", "too-large", "invalid", "sandbox-failed", "too-many-downloads"),
    },
)
async def download_file(
    api: TheApi,
    session_id: SessionId,
    path: Annotated[str, Path(max_length=4096, description="Relative to the agent's working directory.")],
    principal: Reader,
) -> Response:
    """Return a file of the agent's working directory, as long as the sandbox exists."""
    stored = await api.stored(session_id, principal)
    headers = {"content-disposition": disposition(path.rsplit("/", 1)[-1])}
    return FileAnswer(lambda: api.service.read_file(stored, path, MAX_FILE), api.downloads, headers)


@router.get(
    "/sessions/{session_id}/trace",
    response_class=Response,
    responses={200: {"content": {"application/json": {}}}, **_GONE},
)
async def get_trace(request: Request, api: TheApi, session_id: SessionId, principal: Reader) -> Response:
    """Return the session's spans so far, as an OTLP/JSON request."""
    trace = await api.service.trace(await api.stored(session_id, principal))
    headers = {SPANS_LEFT_OUT: str(trace.left_out)} if trace.left_out else {}
    return Response(trace.body, media_type="application/json", headers=headers)


@router.get("/sessions/{session_id}/log", responses=_GONE)
async def get_log(
    api: TheApi,
    session_id: SessionId,
    principal: Reader,
    after: Annotated[int, Query(ge=0, le=MAX_NUMBER)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_LOG_PAGE)] = 1000,
) -> LogPage:
    """Return events of the session's log, oldest first."""
    stored = await api.stored(session_id, principal)
    store = api.service.store
    entries = await store.read(session_id, after, limit=limit)
    events = [LoggedEvent(id=entry.id, event=msgspec.json.decode(entry.data)) for entry in entries]
    last = events[-1].id if events else after
    return LogPage(
        events=events,
        next=last if last < stored.state.last_event_id else None,
        first=await store.oldest(session_id),
    )


@router.get(
    "/stream/agent/{session_id}",
    response_class=Response,
    responses=_EVENTS,
    name="stream_agent",
    description="Do what `GET /api/sessions/{session_id}/events` does.",
)
@router.get("/sessions/{session_id}/events", response_class=Response, responses=_EVENTS)
async def stream_events(
    api: TheApi,
    session_id: SessionId,
    principal: Reader,
    after: After = None,
    last_event_id: Annotated[str | None, Header(description="Takes precedence over `after`.")] = None,
) -> Any:
    """Stream the session's events as Server-Sent Events: the stored ones after a number, then new ones."""
    return await api.stream(await api.stored(session_id, principal), _start(last_event_id, after))


def _start(last_event_id: str | None, after: int | None) -> int:
    """Return the number of the event after which a stream begins."""
    if not last_event_id:
        return after or 0
    if re.fullmatch("[0-9]{1,15}", last_event_id) is None:
        raise ProblemError("invalid", "Last-Event-ID must be the number of an event")
    return int(last_event_id)


def _answer(view: BaseModel, status: int, headers: dict[str, str]) -> RecordedAnswer:
    return RecordedAnswer(status=status, body=view.model_dump_json().encode(), headers=headers)


def _json(view: BaseModel, status: int, headers: dict[str, str]) -> Response:
    return _answer(view, status, headers).response()
