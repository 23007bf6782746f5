"""A real Prometheus on the loopback interface that scrapes one address often, and a real Pushgateway."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.support.servers import free_port, running

WAIT_SECONDS = 60.0
POLL_SECONDS = 0.05
SCRAPE_INTERVAL = "200ms"

Labels = dict[str, str]


def program(name: str) -> str:
    """Return the path of one of Prometheus' programs, which `make test` installs."""
    found = shutil.which(name)
    assert found is not None, f"{name} is not installed (Debian: apt-get install prometheus prometheus-pushgateway)"
    return found


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus that can be queried."""

    url: str

    def query(self, expression: str) -> list[tuple[Labels, float]]:
        """Return the labels and the value of each series of an expression, without NaN."""
        answer = self._ask("query", query=expression)
        assert answer["status"] == "success", answer
        found = [(dict(each["metric"]), float(each["value"][1])) for each in answer["data"]["result"]]
        return [(labels, value) for labels, value in found if not math.isnan(value)]

    def until(self, expression: str, holds: Callable[[list[tuple[Labels, float]]], bool]) -> None:
        """Wait until an expression has the expected value."""
        limit = time.monotonic() + WAIT_SECONDS
        while not holds(found := self.query(expression)):
            assert time.monotonic() < limit, f"{expression} is still {found}"
            time.sleep(POLL_SECONDS)

    def _ask(self, path: str, **parameters: str) -> Any:
        try:
            with urlopen(f"{self.url}/api/v1/{path}", urlencode(parameters).encode(), timeout=WAIT_SECONDS) as answer:
                return json.load(answer)
        except HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None


@contextmanager
def prometheus(port: int, folder: Path) -> Generator[Prometheus]:
    """Run a Prometheus that scrapes a port of this machine, with its data in a folder."""
    config = folder / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: {SCRAPE_INTERVAL}}}\n"
        "scrape_configs: [{job_name: host, honor_labels: true, "
        f"static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
    )
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with _running("prometheus", folder / "log", *options) as address:
        yield Prometheus(f"http://{address}")


@contextmanager
def pushgateway(folder: Path) -> Generator[str]:
    """Run a Pushgateway that keeps its metrics in memory, with its log in a folder; yield its address."""
    with _running("prometheus-pushgateway", folder / "gateway.log", "--persistence.file=") as address:
        yield address


@contextmanager
def _running(name: str, log: Path, *options: str) -> Generator[str]:
    """Run one of Prometheus' servers; yield its address."""
    address = f"127.0.0.1:{free_port()}"
    command = [program(name), f"--web.listen-address={address}", "--log.level=warn", *options]
    with running(command, url=f"http://{address}/-/ready", log=log, seconds=WAIT_SECONDS):
        yield address
