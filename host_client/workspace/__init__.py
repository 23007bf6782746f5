"""Folders of the host that agents work in: what of them goes into a sandbox, and the changes that come back."""

from ._changes import Changes, FileChange
from ._folder import MAX_BYTES, SentFolder, SessionFolder, Workspace
from ._rules import LEFT_AT_HOME

__all__ = ["LEFT_AT_HOME", "MAX_BYTES", "Changes", "FileChange", "SentFolder", "SessionFolder", "Workspace"]
