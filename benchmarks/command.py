"""``python -m benchmarks.command EVENTS FILE ARGUMENT…``: the command ``gapwatch``, its output in a file, and what it used.

Nothing else is imported, so that the start-up is the command's own.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

from benchmarks.figures import report
from gapwatch.cli import main as gapwatch
from gapwatch.cli.exits import CONSISTENT, DIFFERENCES


def main() -> None:
    """Run the command and print its figures; end as it does where it found no answer."""
    events, file, *command = sys.argv[1:]
    with Path(file).open("w") as output, redirect_stdout(output):
        code = gapwatch.run(command)
    if code not in (CONSISTENT, DIFFERENCES):
        sys.exit(code)
    report(int(events))


if __name__ == "__main__":
    main()
