"""Stores for the service's sessions, decisions and tokens: one protocol, and a module for each kind of store."""

from ._place import is_to_be_made, open_store, open_tokens
from .base import Store, TokenStore

__all__ = ["Store", "TokenStore", "is_to_be_made", "open_store", "open_tokens"]
