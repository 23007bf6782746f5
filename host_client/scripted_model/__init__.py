"""A scripted model: an Anthropic Messages API on loopback, for demos and tests without a key."""

from .script import Script, ScriptError, UnexpectedRequestError, load_script, parse_script
from .server import ScriptedModel

__all__ = ["Script", "ScriptError", "ScriptedModel", "UnexpectedRequestError", "load_script", "parse_script"]
