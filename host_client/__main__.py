"""``python -m host_client`` and the console script."""

from __future__ import annotations


def main() -> None:
    """Run the command line; say what to install where the host's packages are missing."""
    try:
        from .cli.app import app
    except ModuleNotFoundError as error:
        raise SystemExit(f"host_client: {error.name} is not installed: pip install 'sandspan[host]'") from None
    app()


if __name__ == "__main__":
    main()
