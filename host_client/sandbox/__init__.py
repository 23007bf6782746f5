"""The sandboxes that runners run in: one protocol, and a module for each kind."""

from .base import Exit, FolderSandbox, Process, Progress, Sandbox, SandboxInfo
from .local import LocalSandbox

__all__ = ["Exit", "FolderSandbox", "LocalSandbox", "Process", "Progress", "Sandbox", "SandboxInfo"]
