"""``python -m host_client`` and the console script."""

from __future__ import annotations

import os
import sys

from .errors import ConfigurationError
from .extras import needs
from .signals import exit_on_signals


def main() -> None:
    """Run the command line; exit with 2 and one line of advice if the packages of the client extra are missing."""
    exit_on_signals()
    try:
        with needs("client", "the command line"):
            from .cli.app import app
    except ConfigurationError as error:
        sys.stderr.write(f"host_client: {error}\n")
        raise SystemExit(2) from None
    try:
        app()
    except SystemExit as ended:
        if "e2b" in sys.modules:
            _leave(ended)
        raise


def _leave(ended: SystemExit) -> None:
    """End at once: the E2B SDK's HTTP threads may abort the process while the interpreter winds down.

    Seen with pyqwest 0.12 in one exit of eight, with the exit code lost. Everything has been said by now.
    """
    if isinstance(ended.code, str):
        sys.stderr.write(ended.code + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended.code if isinstance(ended.code, int) else int(ended.code is not None))


if __name__ == "__main__":
    main()
