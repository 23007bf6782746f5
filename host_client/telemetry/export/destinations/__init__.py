"""Destinations of spans: their protocol, and the outcomes of sending to them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Protocol

from host_client.telemetry.export.endpoints import Endpoint


@dataclass(frozen=True)
class Delivered:
    """The request was accepted, except for ``rejected`` of its spans, for the reason in ``why``."""

    rejected: int = 0
    why: str = ""


@dataclass(frozen=True)
class Retry:
    """The request may be accepted later, after the ``after`` seconds that the destination asks for, if it does.

    ``why`` is for a person, and equal for equal causes, because each text is logged once. ``is_misconfigured`` means
    that waiting does not help: a person must fix a key or an address. ``answer`` is the beginning of the answer's body,
    without secrets.
    """

    after: float | None
    why: str
    is_misconfigured: bool = False
    answer: str = ""


@dataclass(frozen=True)
class TooLarge:
    """The request is too large; a smaller one may be accepted, unless the destination says so of every request.

    ``answer`` is the beginning of the answer's body, without secrets.
    """

    why: str
    answer: str = ""


@dataclass(frozen=True)
class Refused:
    """The request is refused, because of a span in it or because the destination refuses every request.

    ``answer`` is the beginning of the answer's body, without secrets.
    """

    why: str
    answer: str = ""


Outcome = Delivered | Retry | TooLarge | Refused


def explained(failure: Retry | TooLarge | Refused) -> str:
    """Return the cause of a failure, with the answer if there was one, for a person."""
    return f"{failure.why}; the answer was: {failure.answer}" if failure.answer else failure.why


def key_of(name: str, endpoint: Endpoint, *also: str) -> str:
    """Return a name with a short hash of the URL, the protocol, the headers with the credential, and ``also``."""
    headers = sorted((header.lower(), value) for header, value in endpoint.headers.items())
    where = json.dumps([endpoint.url, endpoint.protocol, headers, also])
    return f"{name}#{hashlib.sha256(where.encode()).hexdigest()[:12]}"


class Destination(Protocol):
    """A receiver of spans. Called from one thread only.

    Spans that wait for a ``durable`` destination are delivered by the next process. One that is not durable serves this
    process alone, such as the terminal.
    """

    @property
    def name(self) -> str:
        """Return the name in counters and logs."""
        ...

    @property
    def key(self) -> str:
        """Return the key of its spans in the spool; a process with the same key sends them to the same place."""
        ...

    @property
    def durable(self) -> bool:
        """Return whether a later process delivers the spans that this one could not."""
        ...

    def send(self, request: bytes) -> Outcome:
        """Send a serialized OTLP ``ExportTraceServiceRequest`` in a limited time."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...
