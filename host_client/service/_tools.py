"""The tools that a service offers to the agents of its tenants, from a JSON file. Pure but for reading the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from host_client.client.host_tools import TOOL_SECONDS, HostTool
from host_client.client.http_tools import http_tool
from host_client.errors import ConfigurationError

ANY_TENANT = "*"
"""The name in the file under which the tools of all tenants stand."""


class TenantTool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tool in the file; ``secret_env`` names the variable that holds its secret. See `http_tool`."""

    name: str
    description: str
    input_schema: dict[str, Any]
    url: str
    secret_env: str
    timeout: float = TOOL_SECONDS
    idempotent: bool = False
    read_only: bool = False


class TenantTools:
    """The tools of each tenant."""

    def __init__(self, by_tenant: Mapping[str, Sequence[TenantTool]], environ: Mapping[str, str]) -> None:
        """Take tools by tenant, and the secrets from ``environ``; raise `ConfigurationError`."""
        self._by_tenant = by_tenant
        self._environ = environ
        for tenant_id in by_tenant:
            names = [each.name for each in self._given(tenant_id)]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ConfigurationError(f"--host-tools: tenant {tenant_id} has two tools named {twice}")
            self.of(tenant_id)

    def of(self, tenant_id: str) -> list[HostTool]:
        """Return a tenant's tools."""
        return [self._tool(tenant_id, each) for each in self._given(tenant_id)]

    def _given(self, tenant_id: str) -> list[TenantTool]:
        own = self._by_tenant.get(tenant_id, ()) if tenant_id != ANY_TENANT else ()
        return [*self._by_tenant.get(ANY_TENANT, ()), *own]

    def _tool(self, tenant_id: str, given: TenantTool) -> HostTool:
        secret = self._environ.get(given.secret_env)
        if not secret:
            raise ConfigurationError(f"--host-tools: {given.name} needs its secret in the variable {given.secret_env}")
        fields = {name: getattr(given, name) for name in TenantTool.__struct_fields__ if name != "secret_env"}
        return http_tool(**fields, secret=secret, context={"tenant_id": tenant_id})


def read_tenant_tools(file: Path, environ: Mapping[str, str]) -> TenantTools:
    """Return the tools in a file, an object with a list by tenant, ``*`` for all; raise `ConfigurationError`."""
    try:
        by_tenant = msgspec.json.decode(file.read_bytes(), type=dict[str, list[TenantTool]])
    except OSError as error:
        raise ConfigurationError(f"--host-tools {file}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"--host-tools {file}: takes lists of tools by tenant: {error}") from None
    return TenantTools(by_tenant, environ)
