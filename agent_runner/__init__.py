"""The half of Sandspan that runs inside a sandbox: one Claude agent, its events and its trace.

The contract is `agent_runner.contract.protocol`; the command is ``agent_runner run`` (see docs/RUNNER.md).
"""

__version__ = "0.1.0"
