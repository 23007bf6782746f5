"""A tool of agents as a server: it checks the signature of each call, and answers one only once.

HOST_TOOLS_SECRET=whsec_… uvicorn tool_server:app --port 8400

The service calls it for each agent whose tenant has this tool in the file of ``host_client serve --host-tools``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import time
from typing import Any

from fastapi import FastAPI, HTTPException, Request

SECRET = base64.b64decode(os.environ["HOST_TOOLS_SECRET"].removeprefix("whsec_"))
MAX_AGE_SECONDS = 300

ORDERS = {"acme": {"Ada": ["pens", "paper"]}}

app = FastAPI()
answered: dict[str, Any] = {}
"""Answers by the ids of their calls; a real server keeps them where its other instances find them."""


async def checked(request: Request) -> dict[str, Any]:
    """Return the call if its signature is right and it is not old; else refuse it with 401."""
    headers, body = request.headers, await request.body()
    message_id, sent, given = (headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    expected = hmac.digest(SECRET, f"{message_id}.{sent}.".encode() + body, hashlib.sha256)
    is_right = hmac.compare_digest(given.encode(), b"v1," + base64.b64encode(expected))
    if not is_right or abs(time.time() - int(sent)) > MAX_AGE_SECONDS:
        raise HTTPException(401)
    return await request.json()


@app.post("/orders")
async def orders(request: Request) -> Any:
    """Return the orders of a customer. The arguments come from an agent: check them as if from the internet."""
    call = await checked(request)
    message_id = request.headers["webhook-id"]
    if message_id not in answered:
        customers = ORDERS.get(call["tenant_id"], {})
        answered[message_id] = customers.get(str(call["arguments"].get("customer")), [])
    return answered[message_id]
