"""Where the peers live: their own Python environment, their jars and compiled classes, in the cache beside the embedded parts."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from benchmarks.pinned import ROOT
from gapwatch.embedded import cache as downloads
from gapwatch.embedded.machine import java_program
from gapwatch.errors import GapwatchError

PYTHON_LOCK = ROOT / "requirements" / "peers.lock"
JARS_LOCK = Path(__file__).with_name("jars.lock")
PROGRAMS = Path(__file__).with_name("programs")
HEAP = "-Xmx4g"
# Flink's serializers look into the JDK's own classes.
OPENED = tuple(
    f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in ("java.util", "java.lang", "java.time", "java.util.concurrent")
)
QUIET = "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"
COMPILER = "org.eclipse.jdt.internal.compiler.batch.Main"


def python(say: downloads.Say) -> Path:
    """Return the interpreter of the peers' environment, made from its hashed lock. Raises GapwatchError."""
    tag = hashlib.sha256(PYTHON_LOCK.read_bytes() + sys.version.encode()).hexdigest()[:12]

    def fill(target: Path, _: Path) -> None:
        say("Installing the Python peers")
        _quietly([sys.executable, "-m", "venv", str(target)], "the environment of the peers could not be made")
        pip = [str(target / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _quietly([*pip, "--require-hashes", "-r", str(PYTHON_LOCK)], "the Python peers could not be installed")

    return downloads.made("peers-python", f"peers-python-{tag}", say, fill) / "bin" / "python"


def java(name: str, group: str, say: downloads.Say) -> list[str]:
    """Return a command that runs the program `name` on the jars of `group`. Raises GapwatchError."""
    jars = downloads.parse_jars(JARS_LOCK.read_text())
    needed = [jar for jar in jars if jar.group == group]
    libraries = downloads.jar_directory(f"peers-{group}", group, needed, say)
    compiler = downloads.jar_directory("peers-compiler", "a Java compiler", [j for j in jars if j.group == "compiler"], say)
    source, program = PROGRAMS / f"{name}.java", java_program(say, what=group)
    tag = hashlib.sha256(source.read_bytes() + JARS_LOCK.read_bytes()).hexdigest()[:12]

    def fill(target: Path, _: Path) -> None:
        compile_ = [program, "-cp", f"{compiler}/*", COMPILER, "-17", "-nowarn", "-proc:none", "-cp", _class_path(libraries)]
        _quietly([*compile_, "-d", str(target), str(source)], f"{source.name} could not be compiled")

    classes = downloads.made("peers-classes", f"peers-{name}-{tag}", say, fill)
    return [program, HEAP, *OPENED, QUIET, "-cp", f"{libraries}/*:{classes}", name]


def _class_path(libraries: Path) -> str:
    return ":".join(str(path) for path in sorted(libraries.glob("*.jar")))


def _quietly(command: list[str], problem: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["no reason was given"]
        raise GapwatchError(f"{problem}: {lines[-1]}", remedy="Check the network, and the settings of pip and Maven.")


def python_versions(interpreter: Path, packages: list[str]) -> dict[str, str]:
    """Return the versions of these packages as they are installed there."""
    code = "import sys; from importlib.metadata import version; print(*(version(name) for name in sys.argv[1:]))"
    done = subprocess.run([interpreter, "-c", code, *packages], capture_output=True, text=True, check=True)
    return dict(zip(packages, done.stdout.split(), strict=True))


def jar_version(artifact: str) -> str:
    """Return the locked version of ``group:artifact``."""
    coordinates = (jar.coordinates for jar in downloads.parse_jars(JARS_LOCK.read_text()))
    return next(found.split(":")[2] for found in coordinates if found.startswith(f"{artifact}:"))
