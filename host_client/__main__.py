"""The entry point of ``python -m host_client`` and of the console script."""

from __future__ import annotations

import os
import sys

from .errors import ConfigurationError
from .extras import needs
from .signals import exit_on_signals


def main() -> None:
    """Run the command line; exit with code 2 and one line of advice if packages of the client extra are missing."""
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
            _exit_at_once(ended)
        raise


def _exit_at_once(ended: SystemExit) -> None:
    """End the process at once, without Python's own shutdown, with the exit code of ``ended``.

    The E2B SDK's HTTP threads may abort the process during that shutdown, and the exit code is lost: seen with
    pyqwest 0.12 in one exit of eight. All output has been written by now.
    """
    if isinstance(ended.code, str):
        sys.stderr.write(ended.code + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended.code if isinstance(ended.code, int) else int(ended.code is not None))


if __name__ == "__main__":
    main()
