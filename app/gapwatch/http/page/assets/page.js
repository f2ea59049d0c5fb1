// The page: asks the API every two seconds, and shows UNKNOWN as soon as it cannot, or as its answer grows old.

import { GLYPHS, card } from "./cards.js";
import { Refused, get, hasToken, setToken } from "./client.js";
import { say, sync } from "./dom.js";
import { age, clock, count, span } from "./format.js";
import { gapRow, keepOpen, sweepRow } from "./rows.js";

const EVERY_MS = 2000;
const STALE_MS = 30000;
const GAPS_SHOWN = 50;
const SWEEPS_SHOWN = 12;
const OPEN_STATES = "open,repairing,acknowledged,snoozed";
const ORDER = ["SKIPPED", "HEALTHY", "WARNING", "UNKNOWN", "ERROR", "CRITICAL"];

const $ = (id) => document.getElementById(id);
let answer = null; // the newest complete one
let failure = null; // {message, since}: why the newest attempt brought none
let asking = false;

async function ask() {
  if (asking) return;
  asking = true;
  try {
    const [pipelines, gaps, sweeps] = await Promise.all([
      get("/api/v1/pipelines"),
      get(`/api/v1/gaps?state=${OPEN_STATES}&limit=${GAPS_SHOWN}`),
      get(`/api/v1/sweeps?limit=${SWEEPS_SHOWN}`),
    ]);
    answer = {
      pipelines: pipelines.body.pipelines,
      gaps: gaps.body,
      sweeps: sweeps.body.sweeps,
      serverMs: pipelines.serverMs,
      oldestReadMs: Math.min(...[pipelines.body, gaps.body, sweeps.body, ...pipelines.body.pipelines].map((one) => Date.parse(one.read_at))),
      receivedMs: Date.now(),
      receivedTicks: performance.now(),
    };
    failure = null;
    $("door").hidden = true;
  } catch (error) {
    failure = { message: explain(error), since: failure?.since ?? Date.now() };
    if (error instanceof Refused && (error.status === 401 || error.status === 403)) openDoor(error);
  } finally {
    asking = false;
  }
  show();
}

function explain(error) {
  if (error instanceof Refused) return error.status < 500 ? error.message : `the API answered ${error.status}: ${error.message}`;
  if (error.name === "TimeoutError") return "the API does not answer in time";
  return "the API cannot be reached";
}

function openDoor(error) {
  const door = $("door");
  if (door.hidden) {
    door.hidden = false;
    $("token").focus();
  }
  say($("door-error"), hasToken() ? error.message : "");
}

/** Milliseconds since the answer came. Both clocks, since either may stand still while the machine sleeps. */
function sinceReceived() {
  return Math.max(Date.now() - answer.receivedMs, performance.now() - answer.receivedTicks);
}

/** Why what is on the screen proves nothing now; null when it does. */
function doubt() {
  if (failure) return `${failure.message} (since ${clock(new Date(failure.since).toISOString())})`;
  if (!answer) return "nothing has been read yet";
  const oldMs = answer.serverMs - answer.oldestReadMs + sinceReceived();
  // NaN compares as false with everything: an answer without times is old as well
  return oldMs <= STALE_MS ? null : `the newest answer is ${Number.isFinite(oldMs) ? span(oldMs / 1000) : "of unknown"} old`;
}

function show() {
  const reason = doubt();
  const known = reason === null;
  showVerdict(reason);
  showPulse(reason);
  document.body.dataset.known = known ? "yes" : "no";
  if (answer) {
    const worstFirst = answer.pipelines.toSorted((one, other) => rank(other.status) - rank(one.status));
    sync($("pipelines"), worstFirst.map((view) => ({ view, known })), (item) => item.view.id, card);
    const gaps = answer.gaps.gaps;
    sync($("gaps"), gaps, (gap) => gap.id, gapRow, keepOpen);
    sync($("sweeps"), answer.sweeps, (run) => run.id, sweepRow);
    const shown = gaps.length < answer.gaps.total ? `the newest ${count(gaps.length)} of ${count(answer.gaps.total)}` : count(gaps.length);
    say($("gaps-count"), known ? (gaps.length ? shown : "none") : `${shown} when last read`);
  }
  tick();
}

function showVerdict(reason) {
  const views = answer?.pipelines ?? [];
  const worst = views.reduce((found, view) => (rank(view.status) > rank(found) ? view.status : found), "SKIPPED");
  const status = reason !== null || !views.length ? "UNKNOWN" : worst;
  const box = $("verdict");
  box.dataset.status = status;
  say(box.querySelector(".glyph"), GLYPHS[status] ?? "?");
  say(box.querySelector("h1"), status);
  say(box.querySelector("p"), reason ?? sentence(views, status));
  showSums(views, reason === null);
  const gaps = reason === null ? views.reduce((sum, view) => sum + total(view), 0) : 0;
  const title = `${gaps ? `(${count(gaps)}) ` : ""}${status} · Gapwatch`;
  if (document.title !== title) document.title = title;
}

/** The sums over all pipelines: loss beside lag, and the one that is furthest behind. */
function showSums(views, known) {
  const shown = known && views.length > 0;
  const proven = views.every((view) => view.consistent_through);
  const least = proven ? views.map((view) => view.consistent_through).sort((one, other) => Date.parse(one) - Date.parse(other))[0] : null;
  say($("sum-gaps"), shown ? count(views.reduce((sum, view) => sum + total(view), 0)) : "?");
  say($("sum-transit"), shown ? count(views.reduce((sum, view) => sum + view.in_transit_keys, 0)) : "?");
  const behind = $("sum-behind");
  if (shown && least) {
    behind.dataset.since = least;
  } else {
    delete behind.dataset.since;
    behind.removeAttribute("title");
    say(behind, shown ? "undefined" : "?");
  }
}

function rank(status) {
  const place = ORDER.indexOf(status);
  return place < 0 ? ORDER.indexOf("UNKNOWN") : place;
}

function total(view) {
  return Object.values(view.gaps_open).reduce((sum, number) => sum + number, 0);
}

function sentence(views, status) {
  if (!views.length) return "No pipeline is configured, so nothing is being watched.";
  const noun = views.length === 1 ? "pipeline" : "pipelines";
  if (status === "HEALTHY") return `${count(views.length)} ${noun}: every write that is due is proven at its target.`;
  const alike = views.filter((view) => view.status === status).map((view) => view.id);
  const names = `${alike.slice(0, 5).join(", ")}${alike.length > 5 ? " …" : ""}`;
  return views.length === 1 ? names : `${names} · ${tally(views)}`;
}

/** "1 critical, 1 unknown, 1 healthy", the worst first. */
function tally(views) {
  const numbers = ORDER.toReversed().map((status) => [status, views.filter((view) => view.status === status).length]);
  return numbers.filter(([, number]) => number).map(([status, number]) => `${count(number)} ${status.toLowerCase()}`).join(", ");
}

function showPulse(reason) {
  $("pulse").dataset.state = reason === null ? "live" : answer || failure ? "lost" : "waiting";
}

/** Count on what grows older by itself. */
function tick() {
  if (answer) {
    const seconds = sinceReceived() / 1000;
    say($("pulse").lastElementChild, failure ? "no answer" : `live · ${span(seconds)} ago`);
    const now = answer.serverMs + sinceReceived();
    for (const node of document.querySelectorAll("[data-since]")) {
      const text = `${span(age(node.dataset.since, now))} ${node.dataset.suffix ?? ""}`.trim();
      say(node, text);
      if (node.title !== node.dataset.since) node.title = node.dataset.since;
    }
  } else if (failure) {
    say($("pulse").lastElementChild, "no answer");
  }
}

function chooseTheme() {
  const root = document.documentElement;
  const button = $("theme");
  const label = () => say(button, `theme: ${root.dataset.theme ?? "auto"}`);
  button.addEventListener("click", () => {
    const next = { undefined: "dark", dark: "light" }[root.dataset.theme];
    if (next) root.dataset.theme = next;
    else delete root.dataset.theme;
    try {
      if (next) localStorage.setItem("gapwatch-theme", next);
      else localStorage.removeItem("gapwatch-theme");
    } catch {
      // storage may be forbidden: then the choice lasts until the page is left
    }
    label();
  });
  label();
}

$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken($("token").value.trim());
  $("token").value = "";
  ask();
});

chooseTheme();
ask();
setInterval(ask, EVERY_MS);
setInterval(show, 1000);
