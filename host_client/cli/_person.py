"""Asks the person at the terminal for approvals and answers, while further events are read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Generator
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from agent_runner.contract.protocol import (
    AnyEvent,
    ApprovalRequest,
    ApprovalResolved,
    QuestionRequest,
    QuestionResolved,
)
from host_client.client.session import Session
from host_client.errors import NotWaitingError, SessionClosedError

from ._editor import EditorError, edit
from ._render import approval_card, remembered_rules, visible

_REMEMBER = "[a]llow and remember  "
KEYS = f"[y]es  {_REMEMBER}[e]dit  [n]o, or n and the reason"


class Person:
    """Asks one question after the other; a question that is resolved otherwise is withdrawn."""

    def __init__(self, session: Session, console: Console) -> None:
        self._session = session
        self._console = console
        self._lines = TerminalLines()
        self._turn = asyncio.Lock()
        self._asking: dict[str, asyncio.Task[None]] = {}

    def observe(self, event: AnyEvent) -> None:
        """Ask the question of a request, or withdraw it when the event resolves the request."""
        match event:
            case ApprovalRequest():
                self._ask(event.data.approval_id, self._approve(event))
            case QuestionRequest():
                self._ask(event.data.question_id, self._answer(event))
            case ApprovalResolved():
                self._withdraw(event.data.approval_id)
            case QuestionResolved():
                self._withdraw(event.data.question_id)
            case _:
                pass

    def close(self) -> None:
        """Withdraw all questions and stop reading stdin."""
        for key in list(self._asking):
            self._withdraw(key)
        self._lines.close()

    def _ask(self, key: str, question: Any) -> None:
        self._asking[key] = asyncio.ensure_future(question)

    def _withdraw(self, key: str) -> None:
        if task := self._asking.pop(key, None):
            task.cancel()

    async def _approve(self, event: ApprovalRequest) -> None:
        async with self._turn:
            with contextlib.suppress(NotWaitingError, SessionClosedError):
                await self._approve_once(event)

    async def _approve_once(self, event: ApprovalRequest) -> None:
        key = event.data.approval_id
        self._console.print(approval_card(event.data))
        me = os.environ.get("USER") or "terminal"
        can_remember = bool(remembered_rules(event.data))
        while True:
            answer = await self._prompt(KEYS if can_remember else KEYS.replace(_REMEMBER, ""))
            choice, _, reason = answer.strip().partition(" ")
            match choice.lower():
                case "y" | "yes":
                    return await self._session.approve(key, decided_by=me)
                case "a" if not can_remember:
                    self._console.print("this call cannot be remembered, only allowed: y, e, or n")
                case "a":
                    return await self._session.approve(key, remember=True, decided_by=me)
                case "e":
                    if (edited := await self._edit(event.data.input)) is not None:
                        return await self._session.approve(key, updated_input=edited, decided_by=me)
                case "n" | "no" | "":
                    return await self._session.deny(key, reason or None, decided_by=me)
                case _:
                    self._console.print("y, a, e, n, or n and the reason")

    async def _edit(self, tool_input: dict[str, Any]) -> dict[str, Any] | None:
        text = json.dumps(tool_input, indent=2, ensure_ascii=False)
        with self._lines.paused():
            try:
                edited = await edit(text, ".json")
            except EditorError as error:
                self._console.print(Text(f"the editor failed: {error}", style="red"))
                return None
        try:
            return msgspec.json.decode(edited, type=dict[str, Any]) if edited is not None else None
        except msgspec.DecodeError as error:
            self._console.print(f"the edited text is not a JSON object: {error}", style="red")
            return None

    async def _answer(self, event: QuestionRequest) -> None:
        async with self._turn:
            answers: dict[str, Any] = {}
            for question in event.data.questions:
                text = str(question.get("question"))
                self._console.print(Text(visible(text), style="bold yellow"))
                options = [str(option.get("label")) for option in question.get("options") or ()]
                for n, label in enumerate(options, 1):
                    self._console.print(f"  {n}. {visible(label)}", markup=False)
                answers[text] = _chosen(await self._prompt("number, or words"), options)
            with contextlib.suppress(NotWaitingError, SessionClosedError):
                await self._session.answer(event.data.question_id, answers)

    async def _prompt(self, keys: str) -> str:
        self._console.print(Text(f"{keys} > ", style="bold yellow"), end="")
        line = await self._lines.next()
        if not line:
            with contextlib.suppress(OSError):  # the terminal was closed
                self._console.print("(end of input: no)")
        return line


def _chosen(answer: str, options: list[str]) -> str:
    answer = answer.strip()
    if answer.isdigit() and 1 <= int(answer) <= len(options):
        return options[int(answer) - 1]
    return answer or "No answer."


class TerminalLines:
    """Reads lines of stdin in the event loop, so that a wait for a line can be cancelled."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._buffer = b""
        self._lines: deque[str] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            chunk = os.read(self._fd, 4096)
        except OSError:  # the terminal was closed
            chunk = b""
        if not chunk:
            self._ended = True
            self.close()
        self._buffer += chunk
        *complete, self._buffer = self._buffer.split(b"\n")
        self._lines.extend(line.decode("utf-8", "replace") + "\n" for line in complete)
        self._arrived.set()

    async def next(self) -> str:
        """Return the next line that is typed from now on; empty at the end of input."""
        self._lines.clear()  # a line typed before the question must not answer it
        while not self._lines and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        return self._lines.popleft() if self._lines else ""

    @contextlib.contextmanager
    def paused(self) -> Generator[None]:
        """Stop reading stdin within the block, so that the editor can read it."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._fd)
        try:
            yield
        finally:
            loop.add_reader(self._fd, self._read)

    def close(self) -> None:
        """Stop reading stdin."""
        asyncio.get_running_loop().remove_reader(self._fd)
