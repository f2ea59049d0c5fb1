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
    feeds(view),
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

function loss(view, known) {
  const kinds = Object.entries(view.gaps_open).filter(([, number]) => number > 0);
  const total = kinds.reduce((sum, [, number]) => sum + number, 0);
  return el(
    "div",
    { class: "half", "data-tone": total ? "bad" : known ? "good" : "none" },
    el("span", { class: "label" }, "Loss"),
    el("strong", { class: "figure" }, count(total)),
    el("span", { class: "muted" }, total === 1 ? "open gap" : "open gaps"),
    kinds.length ? el("div", { class: "chips" }, kinds.map(([kind, number]) => el("span", { class: "chip" }, `${words(kind)} ${count(number)}`))) : null,
  );
}

function lag(view, known) {
  const lags = view.feeds.map((feed) => feed.lag).filter((lag) => lag !== null);
  return el(
    "div",
    { class: "half", "data-tone": view.in_transit_keys ? "busy" : known ? "calm" : "none" },
    el("span", { class: "label" }, "Lag"),
    el("strong", { class: "figure" }, count(view.in_transit_keys)),
    el("span", { class: "muted" }, "in transit, not lost"),
    el(
      "div",
      { class: "chips" },
      view.oldest_in_transit ? el("span", { class: "chip" }, "oldest ", ago(view.oldest_in_transit, "")) : null,
      el("span", { class: "chip" }, `${count(view.pending_keys)} pending`),
      lags.length ? el("span", { class: "chip" }, `${count(lags.reduce((sum, lag) => sum + lag, 0))} unread`) : null,
    ),
  );
}

function coverage(view, known) {
  const ratio = view.coverage;
  const bar = el("meter", { min: "0", max: "1", value: ratio ?? 0, "aria-label": "Coverage" });
  return el(
    "div",
    { class: "coverage", "data-known": known && ratio !== null ? "yes" : "no" },
    el("span", { class: "label" }, "Coverage"),
    bar,
    el("span", { class: "number" }, percent(ratio)),
  );
}

function feeds(view) {
  if (!view.feeds.length) return el("p", { class: "muted small" }, "No feed has spoken yet.");
  const head = ["Feed", "Read through", "Unread", ""].map((text) => el("th", { scope: "col" }, text));
  return el("table", { class: "feeds" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, view.feeds.map(feed)));
}

function feed(one) {
  const state = one.finding ? words(one.finding) : one.caught_up ? "caught up" : "behind";
  return el(
    "tr",
    {},
    el("td", {}, el("span", { class: "side" }, one.side), el("span", { class: "mono clip", title: one.topic }, one.topic)),
    el("td", {}, one.watermark ? ago(one.watermark) : "unknown"),
    el("td", { class: "number" }, one.lag === null ? "–" : count(one.lag)),
    el("td", {}, el("span", { class: "tag", "data-tone": one.finding ? "bad" : one.caught_up ? "good" : "busy" }, state)),
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
