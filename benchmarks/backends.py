"""Receivers of telemetry in a separate process, so that their CPU time is not measured."""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from tests.support.collector import Collector
from tests.support.runs import SpanView, spans_in
from tests.telemetry.receiver import Hang, http_receiver

WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Backends:
    """A receiver that accepts everything, and one that accepts connections and never answers."""

    url: str
    hanging: str
    pipe: Connection

    def taken(self) -> dict[str, list[SpanView]]:
        """Return the spans received since the last call, by the first part of their request's path, and forget them."""
        self.pipe.send(True)
        assert self.pipe.poll(WAIT_SECONDS), "the receivers do not answer"
        requests: list[tuple[str, bytes]] = self.pipe.recv()
        spans: dict[str, list[SpanView]] = {}
        for path, body in requests:
            spans.setdefault(path.split("/")[1], []).extend(spans_in(body))
        return spans


@contextmanager
def backends() -> Generator[Backends]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        assert ours.poll(WAIT_SECONDS), "the receivers did not start"
        url, hanging = ours.recv()
        yield Backends(url, hanging, ours)
    finally:
        process.kill()
        process.join()


def _serve(pipe: Connection) -> None:
    with Collector() as collector, http_receiver() as hanging:
        hanging.behave = lambda _: Hang()
        pipe.send((collector.url, hanging.url))
        while pipe.recv():
            requests = list(collector.requests)
            del collector.requests[: len(requests)]
            pipe.send([(request.path, request.body) for request in requests if request.path.endswith("/v1/traces")])
