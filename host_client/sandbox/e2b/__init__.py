"""The sandboxes in E2B. Only this package imports ``e2b``, which takes 0.3 s, so import it only where it is used."""

from host_client.extras import needs

with needs("client", "host_client.sandbox.e2b"):
    from ._sandbox import DEFAULT_TEMPLATE, DEFAULT_TIMEOUT, E2BOptions, E2BSandbox, Layout

__all__ = ["DEFAULT_TEMPLATE", "DEFAULT_TIMEOUT", "E2BOptions", "E2BSandbox", "Layout"]
