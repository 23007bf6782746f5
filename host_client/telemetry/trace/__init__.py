"""The host's own spans of a session, and those that a dead runner left open."""
