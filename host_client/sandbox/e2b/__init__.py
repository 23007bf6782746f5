"""E2B: the only package that imports ``e2b``, which takes 0.3 s; so it is imported where it is used."""

from ._sandbox import DEFAULT_TEMPLATE, DEFAULT_TIMEOUT, E2BOptions, E2BSandbox, Layout

__all__ = ["DEFAULT_TEMPLATE", "DEFAULT_TIMEOUT", "E2BOptions", "E2BSandbox", "Layout"]
