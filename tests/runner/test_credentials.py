"""The message about a refused key names its variable."""

from __future__ import annotations

import pytest

from agent_runner.contract.credentials import PLACEHOLDER, key_advice, key_refused

CHECK = "check that it is complete, not revoked, and a key for"
API = "https://api.anthropic.com"


@pytest.mark.parametrize(
    ("environ", "advice"),
    [
        ({"ANTHROPIC_API_KEY": "x"}, f"It is from ANTHROPIC_API_KEY: {CHECK} {API}"),
        ({"CLAUDE_CODE_OAUTH_TOKEN": "x"}, f"It is from CLAUDE_CODE_OAUTH_TOKEN: {CHECK} {API}"),
        (
            {"ANTHROPIC_API_KEY": "x", "ANTHROPIC_AUTH_TOKEN": "y"},
            f"It is from ANTHROPIC_AUTH_TOKEN, which takes precedence over ANTHROPIC_API_KEY: {CHECK} {API}",
        ),
        (
            {"ANTHROPIC_API_KEY": "x", "ANTHROPIC_BASE_URL": "https://me:secret@models.acme.com:8443/v?key=secret"},
            f"It is from ANTHROPIC_API_KEY: {CHECK} https://models.acme.com:8443 (ANTHROPIC_BASE_URL)",
        ),
        (
            {"ANTHROPIC_API_KEY": PLACEHOLDER},
            "E2B's proxy adds it: check the key in the E2B secret (--secret-name)",
        ),
        (
            {"ANTHROPIC_API_KEY": ""},
            "It belongs to a login in CLAUDE_CONFIG_DIR: log in again, or set ANTHROPIC_API_KEY",
        ),
    ],
)
def test_advice_about_a_key_names_where_it_is_from(environ: dict[str, str], advice: str) -> None:
    assert key_advice(environ) == advice


def test_a_refusal_says_what_the_api_said_and_no_more_than_that() -> None:
    said = "Failed to authenticate. API Error: 401 invalid x-api-key"
    start = "the model's API refused the key (HTTP 401: invalid x-api-key). It is from"
    assert key_refused(401, said, {"ANTHROPIC_API_KEY": "x"}).startswith(start)
    assert key_refused(403, "", {"ANTHROPIC_API_KEY": "x"}).startswith("the model's API refused the key (HTTP 403). It")
    assert len(key_refused(403, "API Error: 403 " + "<html>" * 1000, {})) < 1000
