// One card per pipeline: status and reasons, consistent-through, loss beside lag, coverage, feeds, findings.

import { el } from "./dom.js";
import { count, moment, percent, words } from "./format.js";

export const GLYPHS = { CRITICAL: "✕", ERROR: "✕", UNKNOWN: "?", WARNING: "!", HEALTHY: "✓", SKIPPED: "–" };

/** A time with its age, which the page's ticker keeps counting. */
export function ago(text, suffix = "ago") {
  return text ? el("span", { class: "ago", "data-since": text, "data-suffix": suffix }) : null;
}

export function pill(status) {
  return el("span", { class: "pill", "data-status": status }, el("i", { "aria-hidden": "true" }, GLYPHS[status] ?? "?"), status);
}

/** The card. `known` false: nothing in it may look proven, whatever the last answer said. */
export function card({ view, known }) {
  const status = known ? view.status : "UNKNOWN";
  return el(
    "article",
    { class: "card", "data-status": status, "data-pipeline": view.id },
    el("div", { class: "card-head" }, el("h2", {}, view.id), pill(status)),
    reasons(view, known),
    headline(view, known),
    el("div", { class: "pair" }, loss(view, known), lag(view, known)),
    coverage(view, known),
    feeds(view, known),
    findings(view),
  );
}

function reasons(view, known) {
  const texts = known ? view.reasons : [`not read now; the last answer said ${view.status}`];
  if (!texts.length) return null;
  return el("ul", { class: "reasons" }, texts.map((text) => el("li", {}, text)));
}

function headline(view, known) {
  const through = view.consistent_through;
  const value = !known ? "unknown" : through ? moment(through) : "undefined";
  const note = !known
    ? through && `last known: ${moment(through)}`
    : through
      ? ["every write committed up to then is proven at the target · ", ago(through, "behind now")]
      : view.baseline
        ? "something that holds it was never read"
        : "no baseline yet";
  return el(
    "div",
    { class: "headline", "data-proven": known && through ? "yes" : "no" },
    el("span", { class: "label" }, "Consistent through"),
    el("strong", { class: "figure" }, value),
    el("span", { class: "muted" }, note),
  );
}

/** Green only where the pipeline is: no gap known is no proof while something was not read. */
function loss(view, known) {
  const kinds = Object.entries(view.gaps_open).filter(([, number]) => number > 0);
  const total = kinds.reduce((sum, [, number]) => sum + number, 0);
  const tone = !known ? "none" : total ? "bad" : view.status === "HEALTHY" ? "good" : "none";
  return el(
    "div",
    { class: "half", "data-tone": tone },
    el("span", { class: "label" }, "Loss"),
    el("strong", { class: "figure" }, known ? count(total) : "?"),
    el("span", { class: "muted" }, known ? (total === 1 ? "open gap" : "open gaps") : `${count(total)} when last read`),
    known && kinds.length
      ? el("div", { class: "chips" }, kinds.map(([kind, number]) => el("span", { class: "chip" }, `${words(kind)} ${count(number)}`)))
      : null,
  );
}

function lag(view, known) {
  const lags = view.feeds.map((feed) => feed.lag).filter((lag) => lag !== null);
  const chips = el(
    "div",
    { class: "chips" },
    view.oldest_in_transit ? el("span", { class: "chip" }, "oldest ", ago(view.oldest_in_transit, "")) : null,
    el("span", { class: "chip" }, `${count(view.pending_keys)} pending`),
    lags.length ? el("span", { class: "chip" }, `${count(lags.reduce((sum, lag) => sum + lag, 0))} unread`) : null,
  );
  return el(
    "div",
    { class: "half", "data-tone": known && view.in_transit_keys ? "busy" : "none" },
    el("span", { class: "label" }, "Lag"),
    el("strong", { class: "figure" }, known ? count(view.in_transit_keys) : "?"),
    el("span", { class: "muted" }, known ? "in transit, not lost" : `${count(view.in_transit_keys)} when last read`),
    known ? chips : null,
  );
}

function coverage(view, known) {
  const ratio = view.coverage;
  const bar = el("meter", { min: "0", max: "1", value: known ? ratio ?? 0 : 0, "aria-label": "Coverage" });
  return el(
    "div",
    { class: "coverage", "data-known": known && ratio !== null ? "yes" : "no" },
    el("span", { class: "label" }, "Coverage"),
    bar,
    el("span", { class: "number" }, known ? percent(ratio) : "unknown"),
  );
}

function feeds(view, known) {
  if (!view.feeds.length) return el("p", { class: "muted small" }, "No feed has spoken yet.");
  const head = ["Feed", "Watermark", "Unread", ""].map((text) => el("th", { scope: "col" }, text));
  const rows = view.feeds.map((one) => feed(one, known));
  return el("table", { class: "feeds" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows));
}

function feed(one, known) {
  const state = !known ? "unknown" : one.finding ? words(one.finding) : one.caught_up ? "caught up" : "behind";
  const tone = !known ? "none" : one.finding ? "bad" : one.caught_up ? "good" : "busy";
  return el(
    "tr",
    {},
    el("td", {}, el("span", { class: "side" }, one.side), el("span", { class: "mono clip", title: one.topic }, one.topic)),
    el("td", {}, one.watermark ? ago(one.watermark) : "unknown"),
    el("td", { class: "number" }, one.lag === null ? "–" : count(one.lag)),
    el("td", {}, el("span", { class: "tag", "data-tone": tone }, state)),
  );
}

function findings(view) {
  if (!view.findings.length) return null;
  return el("ul", { class: "findings" }, view.findings.map(finding));
}

function finding(one) {
  return el(
    "li",
    {},
    el("span", { class: "tag", "data-tone": "bad" }, words(one.finding)),
    el("span", {}, one.message ?? "", " ", el("span", { class: "muted" }, one.remedy ?? "")),
    el("span", { class: "muted" }, ago(one.first_seen)),
  );
}
