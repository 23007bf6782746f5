"""Tasks that must not outlive a block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def cancelled_at_end(*tasks: asyncio.Future[Any]) -> AsyncGenerator[None]:
    """Cancel tasks at the end of the block and wait for them."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
