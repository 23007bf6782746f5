"""The contract between the runner and its host: the only part of `agent_runner` that the host imports.

Its modules are light to import; only `readable` needs the OpenTelemetry SDK.
"""

__version__ = "0.1.0"
