"""Texts are redacted and cut for spans."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent_runner.contract._secret_tokens import FORMS, TOKENS
from agent_runner.contract.sanitize import FULL_LENGTH, PREVIEW_LENGTH, SANITIZERS, full, preview, redact
from tests.runner import gitleaks_rules
from tests.runner.secret_corpus import ALNUM, CASES, HEX, LOOK_ALIKES
from tests.support.tables import ROOT

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


@pytest.mark.parametrize(("text", "secret"), CASES, ids=range(len(CASES)))
def test_of_a_secret_in_a_common_form_nothing_remains(text: str, secret: str) -> None:
    for whole in (text, f"See:\n{text}\nand go on."):
        assert "[redacted]" in redact(whole)
        assert not {secret, secret[:12], secret[-12:]} & set(parts_of(redact(whole), len(secret)))


def parts_of(text: str, length: int) -> list[str]:
    """Return all parts of a text that have the given length, or 12 if that is less."""
    return [text[start : start + size] for size in {length, min(length, 12)} for start in range(len(text))]


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_a_harmless_text_that_looks_like_a_secret_stays(text: str) -> None:
    for whole in (text, f"See:\n{text}\nand go on."):
        assert redact(whole) == whole


def test_the_name_of_a_secret_stays_and_only_its_value_goes() -> None:
    assert redact("export DB_PASSWORD=hunter2 PORT=80") == "export DB_PASSWORD=[redacted] PORT=80"
    assert redact('{"client_secret": "a b", "id": 7}') == '{"client_secret": "[redacted]", "id": 7}'
    assert redact("https://ada:pw@db/shop") == "https://[redacted]@db/shop"
    assert redact("curl -H 'Authorization: Token abc' x") == "curl -H 'Authorization: [redacted]' x"


def test_the_corpus_is_as_large_as_the_documents_say() -> None:
    assert len({text for text, _ in CASES}) == len(CASES) >= 100
    assert len(set(LOOK_ALIKES)) == len(LOOK_ALIKES) >= 100
    for document in ("docs/SECURITY.md", "docs/OPENTELEMETRY_INTEGRATION.md"):
        words = " ".join((ROOT / document).read_text().split())
        assert f"{len(CASES)} of {len(CASES)} forms" in words
        assert f"{len(LOOK_ALIKES)} of {len(LOOK_ALIKES)} look-alikes" in words


CORPUS = st.sampled_from([*(text for text, _ in CASES), *LOOK_ALIKES])


@given(st.lists(CORPUS, max_size=3), st.sampled_from([" ", "\n", ", ", "; ", ": "]))
def test_a_redacted_text_is_redacted_no_further(pieces: list[str], between: str) -> None:
    redacted = redact(between.join(pieces))
    assert redact(redacted) == redacted


@pytest.mark.parametrize(("name", "prefix", "rest"), TOKENS, ids=[f"{name} {prefix}" for name, prefix, _ in TOKENS])
def test_a_token_of_each_row_is_redacted_wherever_it_stands(name: str, prefix: str, rest: str) -> None:
    @settings(max_examples=10)
    @given(st.from_regex(re.compile(rest, re.ASCII), fullmatch=True), st.sampled_from(["", "see ", "(", '"']))
    def check(example: str, before: str) -> None:
        if re.fullmatch(rest, example, re.ASCII):
            assert redact(f"{before}{prefix}{example}") == f"{before}[redacted]"
            assert redact(f"{before}x{prefix}{example}") != f"{before}x[redacted]"

    check()


def test_each_rule_of_gitleaks_is_covered_or_refused_for_a_reason() -> None:
    rows = {name for name, *_ in (*TOKENS, *FORMS)} | {"private-key", "authorization"}
    known = (gitleaks_rules.OWN_ROW, gitleaks_rules.OTHER_ROW, gitleaks_rules.NAMED, gitleaks_rules.REFUSED)
    assert [len(rules) for rules in known] == [121, 6, 79, 16]
    assert len({rule for rules in known for rule in rules}) == 222
    assert gitleaks_rules.OWN_ROW | set(gitleaks_rules.OTHER_ROW.values()) <= rows


@pytest.mark.parametrize("rule", sorted(gitleaks_rules.NAMED))
@pytest.mark.parametrize("value", [HEX[:32], ALNUM[:40]], ids=["hex", "alnum"])
def test_a_value_under_the_name_of_a_vendors_secret_is_redacted(rule: str, value: str) -> None:
    name = rule.replace("-", "_")
    assert redact(f"{name.upper()}={value}") == f"{name.upper()}=[redacted]"
    assert redact(f'"{name}": "{value}"') == f'"{name}": "[redacted]"'


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


RUNS = (
    *("a.", "-a", "eyJaaaaaaaaa-", "eyJaaaaaaaaa.", "a@", "@a-", "bearer ", "token:", "-----BEGIN "),
    *("a", "-", "=", "A_", "eyJ", "@", "://", "://a:", "password ", "password is ", "api key", "key=", "A=a,"),
    *(
        "token=$",
        'token="',
        "token='a\n",
        "token=\\",
        "'token: ')",
        "secret: str ",
        "TOKEN: a, ",
        "<password>",
        "<token>a",
    ),
    *("cookie:", "Cookie: a=b;", "Authorization: ", "authorization:", "token=https://", "token=a.", "token: a::"),
    *("curl -u a ", "mysql -a b ", "redis-cli ", "docker login ", "machine a login ", "sk-a", "s-s4t2", "--a "),
)


@pytest.mark.timeout(30)  # a search from each place of a run takes the square of its length
@pytest.mark.parametrize("part", RUNS)
def test_no_text_takes_long_to_be_looked_through(part: str) -> None:
    assert redact(f"{part * 20_000} @ basic") is not None
    assert redact(f"a@{part * 20_000}") is not None
    assert redact(f"token{part * 20_000}=") is not None
    assert redact(f"token={part * 20_000}") is not None


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
