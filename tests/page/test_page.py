"""What a person sees: the state with its reasons, gaps with evidence, text as text, and UNKNOWN as soon as nobody knows."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from gapwatch.errors import StoreUnreachable
from gapwatch.model.gap import Cause, Kind, Resolution, RunState, State
from gapwatch.model.view import FeedView, PipelineView
from tests.http_harness import Service, now, service, view
from tests.ledger_samples import change, finding, gap, opening, run
from tests.page.conftest import Visit

pytestmark = pytest.mark.page
NASTY = "<script>window.__hit = 1</script><img src=x onerror='window.__hit = 1'>"


def lossy() -> PipelineView:
    return view(
        status="CRITICAL",
        reasons=("2 open gaps, older than the SLO",),
        gaps_open={"missing": 1, "stale": 1},
        consistent_through=now() - timedelta(minutes=20),
        in_transit_keys=1204,
        coverage=0.99996,
    )


async def test_it_shows_how_a_pipeline_stands_without_console_errors(visit: Visit, served: Service) -> None:
    served.desk.shown = [lossy(), view("customers")]
    await visit.page.goto("/")
    card = visit.page.locator('[data-pipeline="orders"]')
    await expect(card.locator(".pill")).to_contain_text("CRITICAL")
    await expect(card.locator(".reasons")).to_contain_text("older than the SLO")
    await expect(card.locator(".headline")).to_contain_text("20 min 0")
    await expect(card.locator(".headline")).to_contain_text("behind now")
    loss, lag = card.locator(".half").nth(0), card.locator(".half").nth(1)
    await expect(loss).to_contain_text("missing 1")
    await expect(loss.locator(".figure")).to_have_text("2")
    await expect(lag.locator(".figure")).to_have_text("1,204")
    await expect(lag).to_contain_text("not lost")
    await expect(card.locator(".coverage")).to_contain_text("99.996 %")
    await expect(card.locator(".feeds tbody tr")).to_have_count(2)
    await expect(visit.page.locator("#verdict h1")).to_have_text("CRITICAL")
    await expect(visit.page).to_have_title("(2) CRITICAL · Gapwatch")
    await expect(visit.page.locator(".version")).to_have_text("1.2.3<test>")
    assert visit.said == []


async def test_it_loads_everything_from_the_product_itself(visit: Visit, served: Service) -> None:
    await visit.page.goto("/")
    await expect(visit.page.locator(".card")).to_have_count(1)
    assert visit.loaded
    assert [url for url in visit.loaded if not url.startswith(served.url + "/")] == []
    answer = await visit.page.request.get("/favicon.ico")
    assert answer.status == 200
    assert visit.said == []


async def test_a_gap_opens_to_its_evidence_and_stays_open(visit: Visit, served: Service) -> None:
    evidence = (
        {"side": "expected", "topic": "shop.public.orders", "partition": 2, "offset": 88123, "position": "7/8", "time": None},
        {"side": "target", "topic": None, "partition": None, "offset": None, "position": None, "time": None, "read": "absent"},
    )
    one = gap(key_fields={"id": 2**53 + 1}, cause=Cause.NEVER_WRITTEN, evidence=evidence, event_time=now() - timedelta(minutes=9))
    served.ledger.store_gaps([opening(one)])
    await visit.page.goto("/")
    row = visit.page.locator("details.gap")
    for text in ("9007199254740993", "missing", "never written", "orders", "9 min 0", "open"):
        await expect(row.locator("summary")).to_contain_text(text)
    await row.locator("summary").click()
    await expect(row.locator(".evidence")).to_contain_text("shop.public.orders [2] @ 88123")
    await expect(row.locator(".evidence")).to_contain_text("absent")
    await expect(row.locator(".history li")).to_have_count(1)
    served.ledger.store_gaps([change(one, "acknowledged", actor="ada", state=State.ACKNOWLEDGED, note="known")])
    await expect(row.locator("summary")).to_contain_text("acknowledged")
    await expect(row.locator(".history")).to_contain_text("acknowledged by ada: known")
    await expect(row).to_have_attribute("open", "")


async def test_it_refreshes_by_itself(visit: Visit, served: Service) -> None:
    await visit.page.goto("/")
    rows = visit.page.locator("details.gap")
    await expect(visit.page.locator("#gaps-count")).to_have_text("none")
    served.ledger.store_gaps([opening(gap(1)), opening(gap(2))])
    await expect(rows).to_have_count(2)
    resolved = {"state": State.RESOLVED, "resolution": Resolution.BACKFILLED, "resolved_at": now()}
    served.ledger.store_gaps([change(gap(1), "resolved", **resolved)])  # type: ignore[arg-type]
    await expect(rows).to_have_count(1)
    assert visit.said == []


async def test_lesson_3_it_says_when_it_does_not_show_all_gaps(visit: Visit, served: Service) -> None:
    served.ledger.store_gaps([opening(gap(number)) for number in range(1, 121)])
    await visit.page.goto("/")
    await expect(visit.page.locator("details.gap")).to_have_count(50)
    await expect(visit.page.locator("#gaps-count")).to_have_text("the newest 50 of 120")


async def test_g5_what_a_database_holds_is_text_and_never_markup(visit: Visit, served: Service) -> None:
    served.desk.shown = [
        view(
            NASTY,
            status="ERROR",
            reasons=(NASTY,),
            gaps_open={NASTY: 1},
            feeds=(FeedView(side=NASTY, topic=NASTY, watermark=None, caught_up=False, lag=None, finding=NASTY),),
            findings=(finding(message=NASTY, remedy=NASTY),),
        )
    ]
    evil = gap(
        pipeline=NASTY,
        key_fields={"id": NASTY},
        target_id=NASTY,
        note=NASTY,
        fields=(NASTY,),
        evidence=(
            {
                "side": NASTY,
                "topic": NASTY,
                "partition": NASTY,
                "offset": NASTY,
                "read": NASTY,
                NASTY: NASTY,
                "values": {NASTY: NASTY},
            },
        ),
    )
    served.ledger.store_gaps([opening(evil)])
    served.ledger.create_run(run(pipeline=NASTY, state=RunState.FAILED, error=NASTY))
    await visit.page.goto("/")
    row = visit.page.locator("details.gap")
    await row.locator("summary").click()
    await expect(row.locator(".history li")).to_have_count(1)
    await expect(row.locator("summary")).to_contain_text(NASTY)
    await expect(visit.page.locator(".card h2")).to_have_text(NASTY)
    await expect(visit.page.locator(".run-error")).to_have_text(NASTY)
    assert await visit.page.locator("body script, body img[src=x]").count() == 0
    assert await visit.page.evaluate("window.__hit") is None
    assert visit.said == []


async def test_it_turns_unknown_when_the_api_dies_and_recovers(visit: Visit, served: Service, tmp_path: Path) -> None:
    await visit.page.goto("/")
    await expect(visit.page.locator("#verdict h1")).to_have_text("HEALTHY")
    await expect(visit.page.locator(".half").nth(0)).to_have_attribute("data-tone", "good")
    await served.server.stop()
    await expect(visit.page.locator("#verdict h1")).to_have_text("UNKNOWN")
    await expect(visit.page.locator("#verdict p")).to_contain_text("cannot be reached")
    await expect(visit.page).to_have_title("UNKNOWN · Gapwatch")
    await expect(visit.page.locator(".card .pill")).to_contain_text("UNKNOWN")
    await expect(visit.page.locator(".headline .figure")).to_have_text("unknown")
    await expect(visit.page.locator("#sum-behind")).to_have_text("?")
    assert await visit.page.locator('[data-status="HEALTHY"], [data-tone="good"]').count() == 0, "nothing green is left"
    other = tmp_path / "again"
    other.mkdir()
    async with service(other, port=served.port):
        await expect(visit.page.locator("#verdict h1")).to_have_text("HEALTHY")
        await expect(visit.page.locator(".card .pill")).to_contain_text("HEALTHY")


async def test_it_turns_unknown_when_the_api_cannot_read_its_ledger(visit: Visit, served: Service) -> None:
    await visit.page.goto("/")
    await expect(visit.page.locator("#verdict h1")).to_have_text("HEALTHY")
    served.desk.fails = StoreUnreachable("The ledger does not answer.", store="ledger")
    await expect(visit.page.locator("#verdict h1")).to_have_text("UNKNOWN")
    await expect(visit.page.locator("#verdict p")).to_contain_text("The ledger does not answer")


async def test_an_answer_that_is_older_than_30_seconds_proves_nothing(visit: Visit, served: Service) -> None:
    served.desk.fresh = False
    served.desk.shown = [view(read_at=now() - timedelta(seconds=10))]  # and not old before a busy machine shows it
    await visit.page.goto("/")
    await expect(visit.page.locator("#verdict h1")).to_have_text("HEALTHY")
    served.desk.shown = [view(read_at=now() - timedelta(seconds=33))]
    await expect(visit.page.locator("#verdict h1")).to_have_text("UNKNOWN")
    await expect(visit.page.locator("#verdict p")).to_contain_text("s old")
    assert await visit.page.locator('[data-tone="good"]').count() == 0


async def test_a_page_that_slept_does_not_wake_up_green(visit: Visit, served: Service) -> None:
    await visit.page.goto("/")
    await expect(visit.page.locator("#verdict h1")).to_have_text("HEALTHY")
    await visit.page.route("**/api/**", lambda route: None)  # the API hangs: neither answer nor error
    await visit.page.evaluate("const real = Date.now; Date.now = () => real() + 31000")
    await expect(visit.page.locator("#verdict h1")).to_have_text("UNKNOWN", timeout=4_000)
    await visit.page.unroute_all(behavior="ignoreErrors")


async def test_before_anything_was_read_it_is_unknown(browser: Browser, served: Service) -> None:
    page = await browser.new_page(base_url=served.url, java_script_enabled=False)
    await page.goto("/")
    await expect(page.locator("h1")).to_have_text("UNKNOWN")
    await expect(page).to_have_title("UNKNOWN · Gapwatch")


async def test_no_known_gap_is_not_green_while_the_pipeline_is_unknown(visit: Visit, served: Service) -> None:
    unknown = view(status="UNKNOWN", reasons=("no baseline yet",), consistent_through=None, baseline=None, coverage=None)
    served.desk.shown = [replace(unknown, feeds=())]
    await visit.page.goto("/")
    await expect(visit.page.locator("#verdict h1")).to_have_text("UNKNOWN")
    await expect(visit.page.locator(".headline .figure")).to_have_text("undefined")
    await expect(visit.page.locator(".headline")).to_contain_text("no baseline yet")
    await expect(visit.page.locator(".coverage")).to_contain_text("no writes yet")
    assert await visit.page.locator('[data-tone="good"]').count() == 0


async def test_no_pipeline_at_all_is_unknown(visit: Visit, served: Service) -> None:
    served.desk.shown = []
    await visit.page.goto("/")
    await expect(visit.page.locator("#verdict p")).to_contain_text("nothing is being watched")
    await expect(visit.page.locator("#verdict h1")).to_have_text("UNKNOWN")


async def test_it_asks_for_a_token_where_one_is_needed(visit: Visit, served: Service) -> None:
    _, secret = served.ledger.create_token("ada", ["read"], created_by="test")
    await visit.page.goto("/")
    door = visit.page.locator("#door")
    await expect(door).to_be_visible()
    await expect(visit.page.locator("#verdict h1")).to_have_text("UNKNOWN")
    await visit.page.fill("#token", "gwt_wrong")
    await visit.page.keyboard.press("Enter")
    await expect(visit.page.locator("#door-error")).to_contain_text("not valid")
    await visit.page.fill("#token", secret)
    await visit.page.click("#door button")
    await expect(visit.page.locator("#verdict h1")).to_have_text("HEALTHY")
    await expect(door).to_be_hidden()
    assert [url for url in visit.loaded if secret in url] == [], "a secret is in no address"


async def test_sweeps_show_their_progress_and_errors(visit: Visit, served: Service) -> None:
    counts = {"source_keys": 1200, "target_keys": 1100, "differences": 100}
    served.ledger.create_run(run(1, state=RunState.RUNNING, started_at=now(), progress=0.42, counts=counts))
    served.ledger.create_run(run(2, state=RunState.INCONCLUSIVE, error="store search does not answer"))
    await visit.page.goto("/")
    running = visit.page.locator(".sweep-row", has_text="running")
    await expect(running).to_contain_text("1,200 / 1,100")
    assert await running.locator("progress").get_attribute("value") == "0.42"
    await expect(visit.page.locator(".sweep-row", has_text="inconclusive")).to_contain_text("does not answer")


async def test_dark_and_light(visit: Visit) -> None:
    await visit.page.goto("/")
    button = visit.page.locator("#theme")

    async def back() -> str:
        return str(await visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = await back()
    await visit.page.emulate_media(color_scheme="dark")
    dark = await back()
    assert dark != light
    await button.click()
    await button.click()
    await expect(button).to_have_text("theme: light")
    assert await back() == light, "a choice wins over the system"
    await visit.page.reload()
    await expect(button).to_have_text("theme: light")
    assert await back() == light


async def test_it_fits_a_phone(browser: Browser, served: Service) -> None:
    served.ledger.store_gaps([opening(gap(key_fields={"id": "k" * 300}, kind=Kind.MISMATCH))])
    served.ledger.create_run(run())
    served.desk.shown = [lossy()]
    page = await browser.new_page(base_url=served.url, viewport={"width": 390, "height": 800})
    await page.goto("/")
    await page.locator("details.gap summary").click()
    await expect(page.locator(".history li")).to_have_count(1)
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390
