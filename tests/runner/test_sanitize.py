"""Texts are redacted and cut for spans."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent_runner.contract.sanitize import FULL_LENGTH, PREVIEW_LENGTH, SANITIZERS, full, preview, redact

SECRETS = [
    "sk-ant-api03-abcdefghijkl",
    "e2b_0123456789abcdef",
    "ghp_0123456789abcdefABCD",
    "github_pat_0123456789abcdefABCD",
    "glpat-0123456789abcdefABCD",
    "gho_0123456789abcdefABCD",
    "pk-lf-01234567-89ab",
    "rk-live-0123456789",
    "sst_0123456789abcdefABCD-_0123456789abcdefABCDE",
    "xoxb-123456789-abc",
    "AKIAABCDEFGHIJKLMNOP",
    "ASIAABCDEFGHIJKLMNOP",
    "AIzaSyA-0123456789_0123456789_012345",
    "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.c2lnbmF0dXJl",
    "ann.smith@mail.example.org",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nMIIEow and so on",
]


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret[:12])
def test_a_secret_is_redacted_wherever_it_stands(secret: str) -> None:
    for text in (secret, f"before {secret}", f"session-{secret}", f'"{secret}"', "x " * 45 + secret):
        assert "[redacted]" in redact(text)
        assert secret[8:] not in redact(text)
        assert secret[8:] not in preview(text)
        assert secret[8:] not in full(text)


def test_a_named_secret_is_redacted_with_its_name() -> None:
    for text in (
        'password: "hunter22"',
        "API_KEY=abcd1234",
        "Authorization: Bearer abcdefgh12",
        "BASIC abcdefgh12",
        "Passwd=abcd1234",
    ):
        assert "[redacted]" in redact(text)
        assert not {"hunter22", "abcd1234", "abcdefgh12"} & set(redact(text).replace('"', " ").split())


@given(st.text(st.characters(exclude_categories=()), max_size=300))
def test_a_preview_is_one_short_line(text: str) -> None:
    shown = preview(text)
    assert len(shown) <= PREVIEW_LENGTH
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


@given(st.text(st.characters(exclude_categories=()), max_size=300))
def test_full_content_can_be_encoded(text: str) -> None:
    full(text).encode("utf-8")


def test_even_full_content_is_bounded() -> None:
    assert len(full("x" * 10_000_000)) == FULL_LENGTH
    assert SANITIZERS["none"] is None


@pytest.mark.timeout(30)  # a search from each place of a run takes the square of its length
@pytest.mark.parametrize(
    "part", ["a.", "-a", "eyJaaaaaaaaa-", "eyJaaaaaaaaa.", "a@", "@a-", "bearer ", "token:", "-----BEGIN "]
)
def test_no_text_takes_long_to_be_looked_through(part: str) -> None:
    assert redact(f"{part * 20_000} @ basic") is not None
    assert redact(f"a@{part * 20_000}") is not None


PIECES = ("e2b_", "sst_", "ghp_", "gho_", "github_pat_", "AKIA", "ASIA", "AIza", "eyJ", "a", "Z", "0", "_", "A" * 16)


@example("e2b_" + "A" * 16)
@example("sst_" + "A" * 16)
@example("gho_" + "A" * 16)
@example("github_pat_" + "A" * 16)
@example("AKIA" + "A" * 16)
@example("ASIA" + "A" * 16)
@example("AIza" + "A" * 32)
@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
def test_a_secret_that_is_one_word_is_redacted_where_the_expression_finds_it(word: str) -> None:
    assert f"{redact(word)} @" == redact(f"{word} @")  # which is more than one word
