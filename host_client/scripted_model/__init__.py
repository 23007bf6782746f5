"""A scripted model: an Anthropic Messages API on loopback, for demos and tests without a key."""

from ._script import Script, ScriptError, UnexpectedRequestError, load_script, parse_script
from ._server import ScriptedModel

__all__ = ["Script", "ScriptError", "ScriptedModel", "UnexpectedRequestError", "load_script", "parse_script"]
