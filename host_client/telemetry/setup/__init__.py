"""Configuration of telemetry, from the environment and in code."""
