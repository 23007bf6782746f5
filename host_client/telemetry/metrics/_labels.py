"""Label values, limited in number and in content, because each new value is a series that stays. Pure.

Values that a sandbox chooses, such as the names of tools, are also limited for each customer, so that a customer who
invents names does not use up the room for the names of others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from agent_runner.contract.approvals import NO_ONE
from agent_runner.contract.genai import AGENT_NAME
from agent_runner.contract.prices import PRICES, family
from agent_runner.contract.protocol import ERROR_TYPES
from agent_runner.contract.sanitize import single_line
from host_client.telemetry.tail.pipeline import Who

OTHER = "other"
"""Label value of everything beyond a limit."""

MAX_TENANTS = 1000
MAX_MODELS = 100
MAX_TOOLS = 200
MAX_AGENTS = 100
MAX_TIERS = 20
MAX_REASONS = 100
MAX_DECIDERS = 100
MAX_SERVERS = 20
MAX_LENGTH = 128

MODELS_OF_ONE = 10
TOOLS_OF_ONE = 40
AGENTS_OF_ONE = 20
DECIDERS_OF_ONE = 20
SERVERS_OF_ONE = 2
KINDS_OF_ONE = 2
"""Maximum numbers of different values from the sandboxes of one customer."""

MAX_ASKED = 100
"""Maximum number of models, and of tools, that the host asked for by name. They have room of their own."""

TOOLS = frozenset(
    (
        *("Agent", "AskUserQuestion", "Bash", "BashOutput", "CronCreate", "CronDelete", "CronList", "Edit"),
        *("EnterPlanMode", "EnterWorktree", "ExitPlanMode", "ExitWorktree", "Glob", "Grep", "KillShell", "ListAgents"),
        *("ListMcpResourcesTool", "Monitor", "NotebookEdit", "Read", "ReadMcpResourceTool", "ReportFindings"),
        *("ScheduleWakeup", "SendMessage", "Skill", "SlashCommand", "Task", "TaskOutput", "TaskStop", "TodoWrite"),
        *("ToolSearch", "WebFetch", "WebSearch", "Workflow", "Write"),
    )
)
"""Names of the CLI's own tools."""

AGENTS = frozenset((AGENT_NAME, "general-purpose", "Explore", "Plan", "statusline-setup"))
"""Names of the main agent and of the CLI's own subagents."""

SERVERS = frozenset({"443 api.anthropic.com"})
"""Port and address of Anthropic's own API."""

DECIDERS = frozenset({"policy:auto", "policy:deny", "approver", NO_ONE})
"""Values of ``decided_by`` where no person decides."""


class Bounded:
    """Map values to labels: at most ``limit`` different ones, ``of_one`` of each source, `OTHER` beyond that.

    Known values do not count towards the limits.
    """

    def __init__(self, limit: int, known: Iterable[str] = (), of_one: int | None = None) -> None:
        self._limit = limit
        self._of_one = limit if of_one is None else of_one
        self._known = set(known)
        self._most_known = len(self._known) + MAX_ASKED
        self._seen: set[str] = set()
        self._by_source: Counter[str] = Counter()

    def know(self, value: str) -> None:
        """Make a value known, because the host itself asked for it."""
        if len(self._known) < self._most_known:
            self._known.add(_label(value))

    def __call__(self, value: str, source: str = "") -> str:
        """Return the label of a value from a source: one line without control characters, at most 128 characters."""
        label = _label(value)
        if label in self._known or label in self._seen:
            return label
        if len(self._seen) >= self._limit or self._by_source[source] >= self._of_one:
            return OTHER
        self._by_source[source] += 1
        self._seen.add(label)
        return label


def _label(value: str) -> str:
    return single_line(value, MAX_LENGTH).strip()


def error_type(value: object) -> str:
    """Return an error's type if the contract has it, else `OTHER`."""
    return value if value in ERROR_TYPES else OTHER  # pyright: ignore[reportReturnType]


class Labels:
    """The labels of one set of metrics. ``source`` names the customer whose sandbox chose a value; see `source_of`."""

    def __init__(self, user_limit: int, default_tier: str | None) -> None:
        self._tenant = Bounded(MAX_TENANTS)
        self._tier = Bounded(MAX_TIERS)
        self._user = Bounded(user_limit) if user_limit > 0 else None
        self._default_tier = default_tier
        self._model = Bounded(MAX_MODELS, PRICES, MODELS_OF_ONE)
        self.tool = Bounded(MAX_TOOLS, TOOLS, TOOLS_OF_ONE)
        self.agent = Bounded(MAX_AGENTS, AGENTS, AGENTS_OF_ONE)
        self.decider = Bounded(MAX_DECIDERS, DECIDERS, DECIDERS_OF_ONE)
        self._server = Bounded(MAX_SERVERS, SERVERS, SERVERS_OF_ONE)
        self.sandbox_kind = Bounded(MAX_TIERS, ("local", "e2b"), KINDS_OF_ONE)
        self.reason = Bounded(MAX_REASONS)

    def know(self, who: Who) -> None:
        """Make the model and the tools known that a session asks for by name."""
        for bound, names in ((self._model, (who.model,)), (self.tool, who.tools)):
            for name in filter(None, names):
                bound.know(name)

    def model(self, name: str, source: str = "") -> str:
        """Return a model's label; beyond the limits, that of its family in the price list, if it has one."""
        label = self._model(name, source)
        return family(name) or OTHER if label == OTHER else label

    def server(self, address: Any, port: Any, source: str = "") -> dict[str, str | int]:
        """Return the labels of the model's API; none beyond the limits, or if these are no address and port."""
        if not isinstance(address, str) or not address.strip() or type(port) is not int:
            return {}
        # The address comes last, as a label is cut at its end.
        label = self._server(f"{port} {address}", source)
        return {"server.address": label.partition(" ")[2], "server.port": port} if label != OTHER else {}

    def customer(self, tenant: str | None, tier: str | None) -> dict[str, str]:
        """Return the labels of a session's customer, which all of its metrics have."""
        labels = {"tenant": self._tenant(tenant)} if tenant else {}
        if tier := tier or self._default_tier:
            labels["tier"] = self._tier(tier)
        return labels

    def user(self, user: str | None) -> dict[str, str]:
        """Return the label of a user, which only the cost metric has."""
        return {"user": self._user(user)} if user and self._user is not None else {}


def source_of(session: str | None, user: str | None, tenant: str | None) -> str:
    """Return a key for a sandbox's customer: its tenant, else its user, else its session; empty if none is known."""
    return next((f"{kind}:{name}" for kind, name in (("t", tenant), ("u", user), ("s", session)) if name), "")
