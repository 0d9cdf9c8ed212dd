"""The command ``hatam``, also as ``python -m hatam.bench``; without the extra it says how to get it."""

from __future__ import annotations


def main() -> None:
    """Run the command."""
    try:
        from .cli import main as run
    except ModuleNotFoundError as error:
        raise SystemExit(f"hatam: the comparison needs {error.name}: pip install 'hatam[bench]'") from None
    run()


if __name__ == "__main__":
    main()
