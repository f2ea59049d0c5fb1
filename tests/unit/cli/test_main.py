"""The command line: what it imports, where it says things, and what its exit codes claim."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import pytest
import typer

from gapwatch.check_ports import Advice
from gapwatch.cli import exits, main, output
from gapwatch.cli.exits import CONSISTENT, INTERRUPTED, UNDECIDED, USAGE
from gapwatch.errors import ConflictError, GapwatchError, NotFoundError, StoreUnreachable
from gapwatch.model.pipeline import Settings
from gapwatch.wiring import examination
from tests.unit.config.test_load import GOOD

CLI = Path(main.__file__).parent
HELPERS = {"__init__", "client", "exits", "main", "options", "output", "runs"}
HEAVY = ("aiohttp", "aiokafka", "confluent_kafka", "faust", "psycopg", "pymongo", "sqlalchemy", "yaml", "rich")


@pytest.fixture
def good(tmp_path: Path) -> str:
    file = tmp_path / "gapwatch.yaml"
    file.write_text(GOOD)
    return str(file)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def test_every_noun_has_a_module_and_every_module_is_a_noun() -> None:
    modules = {path.stem for path in CLI.glob("*.py")} - HELPERS
    assert {module for module, _ in main.NOUNS.values()} == {f"gapwatch.cli.{name}" for name in modules}
    for module, _ in main.NOUNS.values():
        assert isinstance(import_module(module).app, typer.Typer)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["gaps", "--help"], ["sweep", "start", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys; from gapwatch.cli.main import run; run({arguments!r}); print(sorted(sys.modules), file=sys.stderr)"
    loaded = set(re.findall(r"'([A-Za-z_0-9]+)'", python(code).stderr.splitlines()[-1]))
    assert "gapwatch" in loaded
    assert loaded.isdisjoint(HEAVY)
    assert "pydantic" not in loaded or arguments[:1] in (["gaps"], ["sweep"])  # Typer's own, for options of a choice


def test_importing_the_command_takes_less_than_a_quarter_of_a_second_of_work() -> None:
    code = "import time; before = time.process_time(); import gapwatch.cli.main; print(time.process_time() - before)"
    assert min(float(python(code).stdout) for _ in range(3)) < 0.25


@pytest.mark.parametrize("noun", main.NOUNS)
def test_every_noun_explains_itself(noun: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([noun, "--help"]) == CONSISTENT
    shown = capsys.readouterr()
    assert f"Usage: gapwatch {noun}" in shown.out
    assert shown.err == ""


def test_the_version_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == CONSISTENT
    assert capsys.readouterr().out.startswith("gapwatch 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pipeline"], "No such command 'pipeline'. Did you mean 'pipelines'?"),
        (["nonsense"], "No such command 'nonsense'."),
        (["gaps", "list", "--output", "yaml"], "'yaml' is not one of"),
        (["gaps", "show"], "Missing argument"),
        (["run", "--rolle", "all"], "No such option: --rolle"),
        (["config", "validate", "--config", "no-such.yaml"], "cannot be read: No such file or directory."),
        (["pipelines", "--url", "junk"], "error: 'junk' is not the address of a service.\n  Write it like http://"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == USAGE
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_options_may_stand_after_the_arguments_of_a_noun_without_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["key", "orders", "42", "--url", "http://127.0.0.1:1", "--output", "json"]) == UNDECIDED
    assert "Nothing answers at http://127.0.0.1:1." in capsys.readouterr().err


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_configuration_may_be_named_anywhere(good: str, place: int, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--config", good], [f"--config={good}"]):
        arguments = ["config", "validate"]
        arguments[place:place] = option
        assert main.run(arguments) == CONSISTENT
        assert "1 pipelines, 2 stores, no problem found." in capsys.readouterr().err


def test_a_file_may_have_the_name_of_a_noun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert main.run(["-c", "demo", "config", "validate"]) == CONSISTENT
    assert "demo: 1 pipelines" in capsys.readouterr().err


def test_the_environment_names_the_file(good: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPWATCH_CONFIG", good)
    assert main.run(["config", "validate"]) == CONSISTENT


def test_k3_every_problem_is_printed_without_a_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(GOOD.replace("grace: 5s", "grase: 5s").replace("partitions: 4", "partitions: s3cret"))
    assert main.run(["--config", str(file), "config", "validate"]) == USAGE
    assert capsys.readouterr().err == (
        f"error: {file} has 2 problems:\n"
        "  - line 2, topics.partitions: It should be a whole number.\n"
        "  - line 13, pipelines.orders.grase: There is no such key. Did you mean `grace`?\n"
    )


def test_what_config_render_prints_is_data_and_masked(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["config", "render", "--config", good]) == CONSISTENT
    shown = capsys.readouterr()
    assert "dsn: postgresql://app:***@db/shop" in shown.out
    assert shown.err == ""


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr("gapwatch.config.load", load)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (StoreUnreachable("No answer.", remedy="Start it."), UNDECIDED, "error: No answer.\n  Start it.\n"),
        (NotFoundError("No such gap."), USAGE, "error: No such gap.\n"),
        (ConflictError("It runs already.", running_id="7"), USAGE, "error: It runs already.\n"),
        (GapwatchError("Something."), UNDECIDED, "error: Something.\n"),
        (KeyboardInterrupt(), INTERRUPTED, ""),
    ],
)
def test_errors_are_a_sentence_a_remedy_and_a_code(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(error, monkeypatch)
    assert main.run(["config", "validate"]) == code
    assert capsys.readouterr().err == said


def test_a_traceback_only_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(StoreUnreachable("No answer."), monkeypatch)
    monkeypatch.setenv("GAPWATCH_DEBUG", "1")
    assert main.run(["config", "validate"]) == UNDECIDED
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("error: No answer.\n")


def test_a_fault_of_ours_never_claims_differences(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(ZeroDivisionError("ours"), monkeypatch)
    assert main.run(["config", "validate"]) == UNDECIDED
    assert "ZeroDivisionError: ours" in capsys.readouterr().err


def test_a_reader_that_leaves_early_never_reads_as_differences() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "gapwatch", "config", "schema"],
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (UNDECIDED, b"")


OK = Advice(level="ok", subject="orders.source", message="All is well.")
WARNING = Advice(level="warning", subject="orders.source", message="Slow.", remedy="Wait.")
UNKNOWN = Advice(level="unknown", subject="orders.target", message="Not read.")
ERROR = Advice(level="error", subject="orders.target", message="No right.", remedy="Grant it.")


@pytest.mark.parametrize(
    ("advice", "code"),
    [
        ([], CONSISTENT),
        ([OK, WARNING], CONSISTENT),
        ([OK, UNKNOWN], UNDECIDED),
        ([UNKNOWN, ERROR], USAGE),
        ([Advice(level="odd", subject="s", message="m")], UNDECIDED),
    ],
)
def test_advice_of_the_live_check_decides_the_exit_code(
    good: str, advice: Sequence[Advice], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def validate_live(settings: Settings) -> Sequence[Advice]:
        assert set(settings.pipelines) == {"orders"}
        return advice

    monkeypatch.setattr(examination, "validate_live", validate_live)
    assert main.run(["config", "validate", "--against-live", "--config", good]) == code
    assert len(capsys.readouterr().out.splitlines()) == len(advice)


def test_advice_is_printed_worst_first_with_its_remedy(
    good: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(examination, "validate_live", lambda _: [OK, WARNING, UNKNOWN, ERROR])
    main.run(["config", "validate", "--against-live", "--config", good])
    assert capsys.readouterr().out.splitlines() == [
        "error    orders.target: No right. Grant it.",
        "unknown  orders.target: Not read.",
        "warning  orders.source: Slow. Wait.",
        "ok       orders.source: All is well.",
    ]


ROWS = [
    {"id": "a", "coverage": 0.99999, "key": {"id": 0}, "text": "[red]x[/] \x1b[31m", "more": 1, "none": None, "list": ["a", 2]},
    {"id": 'ü,"b', "coverage": 1.0, "key": {}, "text": "", "more": 2, "none": None, "list": []},
]
COLUMNS = ("id", "coverage", "key", "text", "none", "list")


def test_json_holds_every_member_and_one_object_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    output.emit(ROWS, COLUMNS, "json")
    assert json.loads(capsys.readouterr().out) == ROWS
    output.emit(ROWS[:1], COLUMNS, "json", single=True)
    assert json.loads(capsys.readouterr().out) == ROWS[0]
    output.emit([], COLUMNS, "json")
    assert json.loads(capsys.readouterr().out) == []
    output.emit(ROWS, COLUMNS, "ndjson")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS


def test_csv_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    import csv

    output.emit(ROWS, COLUMNS, "csv")
    assert list(csv.reader(capsys.readouterr().out.splitlines())) == [
        list(COLUMNS),
        ["a", "0.99999", '{"id": 0}', "[red]x[/] \x1b[31m", "", '["a", 2]'],
        ['ü,"b', "1.0", "{}", "", "", "[]"],
    ]


def test_a_table_rounds_nothing_up_hides_no_zero_and_lets_no_data_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.emit(ROWS, COLUMNS, "table")
    shown = capsys.readouterr().out
    assert "0.99999" in shown
    assert "id=0" in shown
    assert r"[red]x[/] \x1b[31m" in shown
    assert "\x1b" not in shown


def test_notes_and_bars_stay_off_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    output.note("said")
    with output.Progress("sweep orders") as progress:
        progress.show(0.5, {"rows": 10})
        progress.show(None, {})
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "said\n")


@pytest.mark.parametrize("counts", [{}, {"source_rows": 1_000, "differences": 0}])
def test_a_bar_shows_on_a_terminal(
    counts: dict[str, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with output.Progress("sweep orders") as progress:
        progress.show(0.5, counts)
    assert "sweep orders" in capsys.readouterr().err


def test_a_bar_says_how_far_how_fast_and_how_long_still(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    now = [1_000.0]
    monkeypatch.setattr("rich.console.monotonic", lambda: now[0])
    with output.Progress("replay orders") as progress:
        for share in (0.0, 0.1, 0.2, 0.3):
            progress.show(share, {"records": int(share * 10_000)})
            now[0] += 10
    said = capsys.readouterr().err
    assert "replay orders records 3,000" in said
    assert "100/s" in said
    assert re.search(r"0:01:[01]\d\b", said), "seven tenths, at ten seconds each"


def test_every_command_and_every_exit_code_is_documented() -> None:
    text = (CLI.parents[2] / "docs" / "cli.md").read_text()
    for noun, (module, _) in main.NOUNS.items():
        app = import_module(module).app
        verbs = [command.name or command.callback.__name__ for command in app.registered_commands]
        for words in ([noun, verb] for verb in verbs) if verbs else [[noun]]:
            assert re.search(rf"`{' '.join(words)}[` ]", text), words
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert documented == {code for name, code in vars(exits).items() if name.isupper()}
