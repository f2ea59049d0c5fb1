"""A mapping on trial: what makes it suspect, what does not, and when it has passed."""

from __future__ import annotations

from gapwatch.core.trial import KEYS, KEYS_MIN, Trial, sentence

NEW = Trial(fingerprint=7)


def mismatches(count: int, *fields: str) -> list[tuple[str, ...]]:
    return [fields] * count


def test_m23_a_field_that_differs_everywhere_is_suspected() -> None:
    trial = NEW.streamed(mismatches(KEYS_MIN, "total"), agreed=0, settled=0)
    assert trial.suspected == ("total",)
    assert not trial.passed


def test_m23_a_few_keys_say_nothing_of_the_mapping() -> None:
    trial = NEW.streamed(mismatches(KEYS_MIN - 1, "total"), agreed=0, settled=0)
    assert trial.suspected == ()
    assert not trial.passed


def test_m23_a_fifth_is_not_yet_too_much() -> None:
    assert NEW.streamed(mismatches(20, "v"), agreed=80, settled=0).suspected == ()
    assert NEW.streamed(mismatches(21, "v"), agreed=79, settled=0).suspected == ("v",)


def test_m23_each_field_is_judged_by_itself() -> None:
    trial = NEW.streamed(mismatches(15, "v") + mismatches(15, "big"), agreed=70, settled=0)
    assert trial.suspected == ()


def test_m23_what_the_stream_settled_speaks_for_the_mapping() -> None:
    trial = NEW.streamed(mismatches(60, "v"), agreed=0, settled=500)
    assert trial.compared == 560
    assert trial.suspected == ()
    trial = trial.streamed([], agreed=0, settled=KEYS)
    assert trial.passed
    assert trial.streamed(mismatches(10_000, "v"), agreed=0, settled=KEYS).suspected == (), "a trial that is over stays over"


def test_m23_a_counter_that_began_anew_takes_nothing_back() -> None:
    trial = NEW.streamed([], agreed=0, settled=500).streamed([], agreed=0, settled=3)
    assert trial.compared == 500


def test_m23_a_whole_sweep_decides_also_of_a_small_table() -> None:
    assert NEW.swept({}, compared=KEYS_MIN, ended=True, whole=True).passed
    assert not NEW.swept({}, compared=KEYS_MIN, ended=True, whole=False).passed
    assert not NEW.swept({}, compared=KEYS_MIN - 1, ended=True, whole=True).passed
    assert not NEW.swept({}, compared=10 * KEYS, ended=False, whole=True).passed, "what is found may be judged yet"
    assert NEW.swept({"v": 30}, compared=100, ended=False, whole=False).suspected == ("v",)
    assert NEW.swept({"v": 30}, compared=100, ended=True, whole=True).suspected == ("v",)


def test_m23_a_sweep_after_the_correction_clears_the_suspicion() -> None:
    suspect = NEW.streamed(mismatches(100, "v"), agreed=0, settled=0)
    assert suspect.suspected
    assert suspect.swept({}, compared=100, ended=True, whole=True).passed


def test_m23_the_sentence_names_fields_counts_and_an_example() -> None:
    said = sentence({"total": 98, "v": 50}, ["total", "v"], 100, {"total": "source '1', target '100'"})
    assert said == (
        "The mapping looks wrong: total differs in 98 of 100 keys (source '1', target '100'); v differs in 50 of 100 keys."
    )
