"""The contract between the runner and its host: all of `agent_runner` that the host may import.

Pure, and light to import; only `readable` needs the OpenTelemetry SDK.
"""

__version__ = "0.1.0"
