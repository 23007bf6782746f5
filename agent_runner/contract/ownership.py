"""Names in spans that only Sandspan itself may set, because backends show, sum up and bill by them. Pure."""

from __future__ import annotations

TRACE_NAME = "trace.name"
"""Attribute with the user's own name for the traces of a session."""

OF_THE_HOST = frozenset({"user.id", "tenant.id", "session.id", "user.tier", TRACE_NAME})
"""Attributes that only the host may set."""

OF_THE_HOST_PREFIXES = ("langfuse.", "gen_ai.usage.cost", "ai.telemetry.metadata.", "tag.tags")
"""Prefixes of attributes that backends read as the user or the cost, and that runners never send."""

OF_THE_AGENT_PREFIXES = ("gen_ai.operation.name", "gen_ai.usage.", "llm.token_count.")
"""Prefixes of attributes that only the agent's own spans may have: backends add these up to the agent's costs."""

HOST_SPANS = frozenset({"agent.session", "sandbox.create", "sandbox.cleanup"})
"""Names of spans that only the host makes. Backends show a whole run by the first."""

PROGRAM = frozenset(
    {"service.name", "service.version", "telemetry.sdk.language", "telemetry.sdk.name", "telemetry.sdk.version"}
)
"""Resource attributes that name a program. Others, such as its command line, are not passed on."""
