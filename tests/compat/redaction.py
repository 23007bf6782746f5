"""The redaction with which the relay's outputs were recorded, so that all else of them can be compared."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from agent_runner.contract import sanitize
from host_client.telemetry.relay import clean

_SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\bsk-[A-Za-z0-9_-]{8,}|\b(?:pk|rk)-(?:lf|live|test)[A-Za-z0-9_-]{8,}"
    r"|\be2b_[A-Za-z0-9]{8,}|\bsst_[A-Za-z0-9_-]{16,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_[A-Za-z0-9_]{16,}"
    r"|\bglpat-[A-Za-z0-9_-]{16,}|\bxox[abeoprs]-[A-Za-z0-9-]{8,}"
    r"|\bA(?:KIA|SIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}"
    r"|(?<![\w-])(?=[\w-]{11,}+\.[\w-]{8,}+\.)[\w-]*?\beyJ[\w-]{8,}+\.[\w-]{8,}+\.[\w-]*"
    r"|(?i:\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|(?i:\b(?:api[_-]?key|token|secret|password|passwd)\b[\"']?\s*[:=]\s*[\"']?)[^\s\"',;]{4,}"
    r"|(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]++@[A-Za-z0-9-]++(?:\.[A-Za-z0-9-]+)+\b",
    re.DOTALL,
)

PLANTED = (
    *("sk-ant-api03-" + "A" * 16, "ghp_" + "0123456789abcdefghij", "AKIA" + "0123456789ABCDEF", "pk-lf-12345678"),
    *("hunter2hunter2", "abcdef'", "abcdefgh.ijklmnop", "MIIE", "ada@example.com", "mallory@example.com"),
)
"""Secrets in the recorded inputs, many with other text directly before and after them."""


@contextmanager
def recorded_redaction() -> Generator[None]:
    """Redact as when the outputs were recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sanitize, "redact", _redact)
        patch.setattr(clean, "attribute_name", clean._attribute)  # pyright: ignore[reportPrivateUsage] - without a cache
        yield


def _redact(text: str) -> str:
    return _SECRETS.sub("[redacted]", text)
