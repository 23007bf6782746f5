"""A FastAPI application that runs an agent for each request, in the caller's trace.

uvicorn embedded_fastapi:app
curl -H 'content-type: application/json' -d '{"prompt": "What is in this folder?"}' localhost:8000/ask
"""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel

from host_client import AgentOptions, events, open_session

app = FastAPI()


class Question(BaseModel):
    prompt: str


class Reply(BaseModel):
    text: str | None
    cost_usd: float
    trace_id: str
    denied: list[str]


@app.post("/ask")
async def ask(question: Question, traceparent: Annotated[str | None, Header()] = None) -> Reply:
    """Run one turn that may only read; each call that needs an approval is denied."""
    denied: list[str] = []
    options = AgentOptions(user_id="web", allowed_tools=("Read", "Grep", "Glob"))
    async with open_session(question.prompt, options, cwd=".", traceparent=traceparent) as session:
        await session.finish()
        text: str | None = None
        async for event in session:
            match event:
                case events.ApprovalRequest():
                    denied.append(event.data.tool_name)
                    await session.deny(event.data.approval_id, "This service only reads.")
                case events.Result() if event.data.is_error:
                    raise HTTPException(502, f"the agent failed: {event.data.error_type}")
                case events.Result():
                    text = event.data.result
                case _:
                    pass
        return Reply(text=text, cost_usd=session.cost_usd, trace_id=session.trace_id, denied=denied)
