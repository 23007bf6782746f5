"""The API's rules for a sandbox's network options, with the messages that it refuses them by.

Taken from the behaviour of e2b-dev/infra, `packages/api/internal/handlers/sandbox_create.go` and `spec/openapi.yml`.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .answers import ApiError

ALL_TRAFFIC = "0.0.0.0/0"

MAX_DOMAINS = 10
MAX_RULES_OF_A_DOMAIN = 1
MAX_DOMAIN_LENGTH = 128
MAX_HEADERS = 20
MAX_NAME_LENGTH = 64
MAX_VALUE_LENGTH = 2048
MAX_SECRETS = 32

_LABEL = "[a-zA-Z0-9_][a-zA-Z0-9_-]{0,62}"
_DOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*[._]?", re.ASCII)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_PLACEHOLDER = re.compile(r"\$\{e2b\.(identity\.tokens|secrets)\.([^}]*)(\}?)")
_SECRET_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")


def check_network(options: Mapping[str, Any], *, transform_rules: bool) -> None:
    """Raise `ApiError` for options that the API refuses; ``transform_rules`` is whether the team may have rules."""
    if mask := options.get("maskRequestHost"):
        _check_mask(mask)
    _check_egress(options.get("allowOut") or [], options.get("denyOut") or [])
    if (rules := options.get("rules")) is not None:
        if not transform_rules:
            raise ApiError(400, "Network transform rules are not available for your team.")
        _check_rules(rules)
    if options.get("egressProxy"):
        raise ApiError(403, "Egress proxy (network.egressProxy) is not enabled for this team.")


def _check_mask(mask: str) -> None:
    host = mask.rpartition(":")[0] if mask.count(":") == 1 else mask
    if ":" in host:
        raise ApiError(400, f"mask request host is not valid: {mask}")
    if not host.isascii():
        raise ApiError(400, f"mask request host '{host}' is not ASCII. Please use ASCII characters only.")


def _check_egress(allow_out: Iterable[str], deny_out: list[str]) -> None:
    for entry in deny_out:
        if not _is_usable(entry):
            raise ApiError(400, f"invalid denied CIDR {entry}")
    addresses = [entry for entry in allow_out if _address_of(entry) is not None]
    for entry in addresses:
        if not _is_usable(entry):
            raise ApiError(400, f"invalid allowed address {entry}")
    if set(allow_out) - set(addresses) and ALL_TRAFFIC not in deny_out:
        raise ApiError(
            400,
            "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out"
            " to block all other traffic.",
        )


def _address_of(entry: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address in ``8.8.8.8`` or ``10.0.0.0/8``, or None for what is neither."""
    address, slash, bits = entry.partition("/")
    if slash and not bits.isdecimal():
        return None
    try:
        ipaddress.ip_network(entry, strict=False)
        return ipaddress.ip_address(address)
    except ValueError:
        return None


def _is_usable(entry: str) -> bool:
    address = _address_of(entry)
    return entry == ALL_TRAFFIC or (address is not None and not address.is_unspecified)


def _check_rules(rules: Mapping[str, list[Mapping[str, Any]] | None]) -> None:
    if len(rules) > MAX_DOMAINS:
        raise ApiError(400, f"Network rules can have at most {MAX_DOMAINS} domains.")
    for domain, given in rules.items():
        of_domain, quoted = given or [], json.dumps(domain)
        if not domain:
            raise ApiError(400, "Rule domain must not be empty.")
        if len(domain) > MAX_DOMAIN_LENGTH:
            raise ApiError(400, f"Rule domain {quoted} exceeds maximum length of {MAX_DOMAIN_LENGTH} characters.")
        if _address_of(domain) is not None or _DOMAIN.fullmatch(domain) is None:
            raise ApiError(400, f"Rule domain {quoted} is not a valid domain name.")
        if len(of_domain) > MAX_RULES_OF_A_DOMAIN:
            raise ApiError(400, f"Domain {quoted} can have at most {MAX_RULES_OF_A_DOMAIN} transform rule.")
        secrets = set[str]()
        for rule in of_domain:
            transform: Mapping[str, Any] = rule.get("transform") or {}
            _check_headers(quoted, transform.get("headers") or {}, secrets)


def _check_headers(domain: str, headers: Mapping[str, str], secrets: set[str]) -> None:
    """Check the headers of a rule; add the secrets that they name to ``secrets``."""
    if len(headers) > MAX_HEADERS:
        raise ApiError(400, f"Domain {domain} can have at most {MAX_HEADERS} headers per rule.")
    for name, value in headers.items():
        rule = f"in rule for domain {domain}"
        header = f"header {json.dumps(name)} {rule}"
        if not name:
            raise ApiError(400, f"Header name {rule} must not be empty.")
        if _TOKEN.fullmatch(name) is None:
            raise ApiError(400, f"Header name {json.dumps(name)} {rule} must contain only valid HTTP token characters.")
        if len(name) > MAX_NAME_LENGTH:
            length = f"exceeds maximum length of {MAX_NAME_LENGTH} characters."
            raise ApiError(400, f"Header name {json.dumps(name)} {rule} {length}")
        if _CONTROL.search(value):
            raise ApiError(400, f"Value for {header} contains invalid characters.")
        if len(value) > MAX_VALUE_LENGTH:
            raise ApiError(400, f"Value for {header} exceeds maximum length of {MAX_VALUE_LENGTH} characters.")
        secrets |= _secrets_in(value)
        if len(secrets) > MAX_SECRETS:
            raise ApiError(400, f"Rule domain {domain} references more than {MAX_SECRETS} secrets.")


def _secrets_in(value: str) -> set[str]:
    """Return the names of the secrets that a header's value refers to, in lower case."""
    found = set[str]()
    for kind, name, brace in _PLACEHOLDER.findall(value):
        is_secret = kind == "secrets"
        named = _SECRET_NAME.fullmatch(name.strip()) is not None if is_secret else bool(name)
        if not brace or not named or _PLACEHOLDER.search(name):
            raise ApiError(400, "Network transform header contains a malformed E2B placeholder.")
        if is_secret:
            found.add(name.strip().lower())
    return found
