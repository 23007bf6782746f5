"""``python -m host_client`` and the console script."""

from __future__ import annotations

import os
import sys

from .signals import exit_on_signals


def main() -> None:
    """Run the command line; say what to install where the host's packages are missing."""
    exit_on_signals()
    try:
        from .cli.app import app
    except ModuleNotFoundError as error:
        raise SystemExit(f"host_client: {error.name} is not installed: pip install 'sandspan[host]'") from None
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
