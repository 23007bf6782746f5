"""Where spans go: what a destination is, and what its answers mean."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Protocol

from host_client.telemetry.export.endpoints import Endpoint


@dataclass(frozen=True)
class Delivered:
    """It took the request, all but ``rejected`` of its spans, for the reason in ``why``."""

    rejected: int = 0
    why: str = ""


@dataclass(frozen=True)
class Retry:
    """It may take the request later; ``after`` is in seconds, as the destination says, None where it does not.

    ``why`` is for a person, and the same for the same trouble: it is told once. ``is_misconfigured`` says that time
    alone does not help: a key or an address must be mended.
    """

    after: float | None
    why: str
    is_misconfigured: bool = False


@dataclass(frozen=True)
class TooLarge:
    """It would take less at once."""


@dataclass(frozen=True)
class Refused:
    """Something in the request is not to its liking, and never will be."""

    why: str


Outcome = Delivered | Retry | TooLarge | Refused


def key_of(name: str, endpoint: Endpoint, *also: str) -> str:
    """Return a name and a short hash of where spans go: the URL, the headers with the credential, and what else."""
    headers = sorted((header.lower(), value) for header, value in endpoint.headers.items())
    where = json.dumps([endpoint.url, endpoint.protocol, headers, also])
    return f"{name}#{hashlib.sha256(where.encode()).hexdigest()[:12]}"


class Destination(Protocol):
    """One receiver of spans; called from one thread only, its own.

    What waits for a ``durable`` one outlives the process; one that is not is of use to this process alone,
    as a terminal is.
    """

    @property
    def name(self) -> str:
        """What it is called in counters and logs."""
        ...

    @property
    def key(self) -> str:
        """What its spans are kept under: another process with the same key sends them to the same place."""
        ...

    @property
    def durable(self) -> bool:
        """Whether a later process delivers what this one could not."""
        ...

    def send(self, request: bytes) -> Outcome:
        """Send a serialized OTLP ``ExportTraceServiceRequest``; takes a bounded time."""
        ...

    def close(self) -> None:
        """Give its connections back."""
        ...
