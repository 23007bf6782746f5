"""What Sandspan adds to the bare Claude Agent SDK: `make bench`."""
