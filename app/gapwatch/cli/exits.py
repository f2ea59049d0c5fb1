"""Exit codes of every command (``product.md`` 3). Never 0 on partial coverage."""

from __future__ import annotations

from typing import Final

CONSISTENT: Final = 0
DIFFERENCES: Final = 1
USAGE: Final = 2
UNDECIDED: Final = 3
TIMED_OUT: Final = 4
INTERRUPTED: Final = 130
