"""``python -m gapwatch``."""

from gapwatch.cli.main import main

if __name__ == "__main__":
    main()
