"""Write all dashboard files."""

from __future__ import annotations

from pathlib import Path

from .files import contents

FOLDER = Path(__file__).resolve().parents[1]


def main() -> None:
    """Write the files; remove those that no dashboard makes any more."""
    made = contents()
    for name in ("grafana", "signoz", "langfuse", "prometheus"):
        for file in (FOLDER / name).glob("*"):
            if str(file.relative_to(FOLDER)) not in made:
                file.unlink()
    for name, text in made.items():
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_text(text)


main()
