"""Where a runner runs. One protocol; each kind of sandbox is a module of its own."""

from .base import Exit, Process, Progress, Sandbox, SandboxInfo
from .local import LocalSandbox

__all__ = ["Exit", "LocalSandbox", "Process", "Progress", "Sandbox", "SandboxInfo"]
