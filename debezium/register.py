"""Register connectors with Kafka Connect and wait until each runs: python debezium/register.py --url URL LIST.json

LIST.json maps a connector's name to ``template`` (a file beside this one), ``values`` (for the template's ``$names``) and
``overrides`` (further settings). Registering what is registered already changes its configuration, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gapwatch.embedded.connect import ConnectClient, filled
from gapwatch.errors import GapwatchError

HERE = Path(__file__).parent
RUNNING_SECONDS_MAX = 120.0


def configuration(entry: dict[str, Any], templates: Path = HERE) -> dict[str, str]:
    """Return the configuration of one entry of the list."""
    text = (templates / entry["template"]).read_text(encoding="utf-8")
    return filled(text, entry["values"]) | {str(name): str(value) for name, value in entry["overrides"].items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Register connectors with Kafka Connect.")
    parser.add_argument("--url", required=True, help="Kafka Connect's REST interface")
    parser.add_argument("list", type=Path)
    chosen = parser.parse_args()
    client = ConnectClient(chosen.url)
    try:
        for name, entry in json.loads(chosen.list.read_text(encoding="utf-8")).items():
            client.put_connector(name, configuration(entry))
            client.wait_running(name, timeout_seconds=RUNNING_SECONDS_MAX)
            sys.stdout.write(f"{name} runs\n")
    except GapwatchError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
