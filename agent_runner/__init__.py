"""The half of Sandspan that runs inside a sandbox: one Claude agent, its events and its trace.

The contract is `agent_runner.contract`; the command is ``agent_runner run`` (see docs/RUNNER.md).
"""

from .contract import __version__ as __version__
