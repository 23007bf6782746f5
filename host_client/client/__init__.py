"""The library: sessions with an agent, from their options to their takeover by another process."""
