"""What the service keeps, and where: one protocol, a module for each kind of store."""

from .base import Store, TokenStore
from .place import is_to_be_made, open_store, open_tokens

__all__ = ["Store", "TokenStore", "is_to_be_made", "open_store", "open_tokens"]
