"""``host_client serve`` without tokens serves this machine only, and reports that before it listens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from host_client.errors import ConfigurationError
from host_client.service.config import check_demo_reach, is_loopback
from tests.support.commands import invoked
from tests.support.runs import WAIT_SECONDS, clean_environment
from tests.support.service import ServiceLab, service_lab

NAMED = "--allowed-host", "agents.acme.com"
ELSEWHERE = "https://console.acme.com"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ServiceLab]:
    with service_lab(tmp_path, {}) as lab:
        yield lab


def says_and_needs(lab: ServiceLab, *args: str) -> tuple[str, bool]:
    """Start a service; return the line that reports its address, and whether it requires a token."""
    served = lab.start(*args)
    answer = httpx.get(f"{served.url}/api/me", timeout=WAIT_SECONDS, trust_env=False)
    assert answer.status_code in (200, 401)
    return next(line for line in served.said if line.startswith("serving ")), answer.status_code == 401


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (("--host", "0.0.0.0", *NAMED), "--host 0.0.0.0"),
        (("--host", "0.0.0.0"), "--host 0.0.0.0"),
        (("--host", "::", *NAMED), "--host ::"),
        (("--host", "box.acme.com", *NAMED), "--host box.acme.com"),
        (NAMED, "--allowed-host agents.acme.com"),
        (("--allowed-origin", ELSEWHERE), f"--allowed-origin {ELSEWHERE}"),
        (("--trusted-proxy", "127.0.0.1"), "--trusted-proxy 127.0.0.1"),
    ],
)
def test_the_demo_refuses_to_be_opened_to_other_machines(tmp_path: Path, args: tuple[str, ...], option: str) -> None:
    done = invoked(tmp_path, "serve", "--demo", "--port", "0", *args)
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"host_client serve: --demo takes no {option}: it requires no tokens")
    assert "ssh -L" in line
    assert "without --demo" in line


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "192.168.1.5", "::", "fe80::1", "", "127.0.0.1.nip.io", "localhost.acme.com"]
)
def test_an_address_that_is_not_loopbacks_is_refused_for_the_demo(host: str) -> None:
    with pytest.raises(ConfigurationError, match="--demo takes no --host"):
        check_demo_reach(host, (), (), ())


@pytest.mark.parametrize(
    "name", ["acme.com", "10.0.0.5:80", "[fd00::5]", "localhost.acme.com", "localhost@acme.com", "[", ""]
)
def test_a_name_that_is_not_loopbacks_is_refused_for_the_demo(name: str) -> None:
    with pytest.raises(ConfigurationError, match="--demo takes no --allowed-host"):
        check_demo_reach("127.0.0.1", (name,), (), ())
    with pytest.raises(ConfigurationError, match="--demo takes no --allowed-origin"):
        check_demo_reach("127.0.0.1", (), (f"http://{name}",), ())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_the_demo_may_have_any_name_of_loopback(host: str) -> None:
    assert is_loopback(host)
    name = f"[{host}]" if ":" in host else host
    check_demo_reach(host, (name, f"{name}:8321"), (f"http://{name}:5173",), ())


def test_the_demo_is_served_under_a_name_of_loopback(lab: ServiceLab) -> None:
    options = "--host", "localhost", "--allowed-host", "127.0.0.2:80", "--allowed-origin", "http://localhost:5173"
    line, is_needed = says_and_needs(lab, "--demo", *options)
    assert "to this machine, without tokens" in line
    assert not is_needed


@pytest.mark.parametrize("start", ["run_demo_service(config, keeps=False)", "run_service(config, None, {})"])
def test_without_tokens_no_socket_but_loopbacks_is_served_whatever_the_configuration(
    tmp_path: Path, start: str
) -> None:
    program = (
        "from host_client.service.run import run_demo_service, run_service\n"
        "from host_client.service.config import ServiceConfig\n"
        f"config = ServiceConfig(host='0.0.0.0', port=0, store='service.sqlite')\n{start}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(tmp_path),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 1
    assert "ConfigurationError: --host 0.0.0.0 is 0.0.0.0, which other machines can reach" in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_auth_off_is_refused_where_other_machines_reach_the_service(tmp_path: Path, host: str) -> None:
    done = invoked(tmp_path, "serve", "--port", "0", "--auth", "off", "--host", host, *NAMED)
    assert done.returncode == 2
    assert "--auth off works on loopback only" in done.stderr.decode()


@pytest.mark.parametrize(
    ("args", "needed", "says"),
    [
        ((), False, "to this machine, without tokens"),
        (("--allowed-host", "localhost:8321"), False, "to this machine, without tokens"),
        (NAMED, True, "every request needs a token"),
        (("--trusted-proxy", "127.0.0.1"), True, "every request needs a token"),
        (("--auth", "off", *NAMED), False, "WITHOUT TOKENS, also through agents.acme.com"),
    ],
)
def test_a_name_for_other_machines_takes_tokens_unless_they_are_switched_off(
    lab: ServiceLab, args: tuple[str, ...], needed: bool, says: str
) -> None:
    line, is_needed = says_and_needs(lab, "--sandbox", "local", *args)
    assert says in line
    assert is_needed == needed


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("proxy.acme.com", "takes an address or a CIDR block like 10.0.0.0/8: 'proxy.acme.com'"),
        ("10.0.0.5/8", "takes an address or a CIDR block like 10.0.0.0/8: 10.0.0.5/8 has host bits set"),
        ("*", "takes an address or a CIDR block"),
        ("", "takes an address or a CIDR block"),
        ("0.0.0.0/0", "0.0.0.0/0 would trust the headers of every caller"),
        ("::/0", "::/0 would trust the headers of every caller"),
    ],
)
def test_a_trusted_proxy_that_is_none_is_told_in_a_line(tmp_path: Path, value: str, says: str) -> None:
    done = invoked(tmp_path, "serve", "--port", "0", "--trusted-proxy", "10.0.0.1", "--trusted-proxy", value)
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("host_client serve: --trusted-proxy")
    assert says in line
