"""The part of Sandspan that runs in a sandbox: it runs one Claude agent and writes its events and spans.

The host imports `agent_runner.contract` only; the command is ``agent_runner run`` (docs/RUNNER.md).
"""

from .contract import __version__ as __version__
