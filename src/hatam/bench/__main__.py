"""``python -m hatam.bench`` is the command ``hatam``."""

from .cli import main

if __name__ == "__main__":
    main()
