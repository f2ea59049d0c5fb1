"""Loopback ports that no two stacks of this machine take at once."""

from __future__ import annotations

import random
import socket

from gapwatch.errors import GapwatchError

HOST = "127.0.0.1"
LEAST, END = 15_000, 32_000  # below the range from which the kernel takes ports for connections
TRIES = 1_000


class Port:
    """A port that was free, kept from other stacks until ``close``.

    The claim is a socket with an abstract name: it holds against every process and user, and ends with this process. A listening
    socket would hold better, but the server needs the port itself.
    """

    def __init__(self) -> None:
        generator = random.SystemRandom()
        for _ in range(TRIES):
            number = generator.randrange(LEAST, END)
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                claim.bind(f"\0gapwatch-port-{number}")
            except OSError:
                claim.close()
                continue
            if _is_free(number):
                self.number = number
                self._claim = claim
                return
            claim.close()
        raise GapwatchError(f"No free port was found between {LEAST} and {END}.", remedy="Stop what listens there.")

    def close(self) -> None:
        self._claim.close()


def _is_free(number: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, number))
        except OSError:
            return False
    return True
