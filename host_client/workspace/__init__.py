"""Folders of the host that agents work in: what of them goes into a sandbox, and the changes that come back."""

from .changes import Changes, FileChange
from .folder import SentFolder, SessionFolder, Workspace

__all__ = ["Changes", "FileChange", "SentFolder", "SessionFolder", "Workspace"]
