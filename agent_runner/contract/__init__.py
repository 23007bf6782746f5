"""The contract between the runner and its host: all of `agent_runner` that the host may import."""
