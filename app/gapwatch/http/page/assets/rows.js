// The rows below the cards: open gaps with their evidence, and sweeps.

import { ago } from "./cards.js";
import { get } from "./client.js";
import { el } from "./dom.js";
import { count, moment, span, words } from "./format.js";

const EVIDENCE = new Set(["side", "topic", "partition", "offset", "position", "time", "read", "operation", "values"]);

/** One gap: a row that opens to its evidence. The history is asked for when it is opened. */
export function gapRow(gap) {
  const history = el("div", { class: "history" });
  const row = el(
    "details",
    { class: "gap", "data-kind": gap.kind },
    el(
      "summary",
      { class: "row gap-row" },
      el("span", { class: "arrow", "aria-hidden": "true" }),
      el("span", { class: "mono clip", title: gap.key_text }, gap.key_text),
      el("span", {}, el("span", { class: "tag", "data-tone": "bad" }, words(gap.kind))),
      el("span", { class: "clip" }, words(gap.cause)),
      el("span", { class: "clip", title: gap.pipeline }, gap.pipeline),
      el("span", { class: "clip" }, ago(gap.event_time ?? gap.first_seen)),
      el("span", {}, words(gap.state)),
    ),
    el("div", { class: "detail" }, facts(gap), evidence(gap), history),
  );
  row.addEventListener("toggle", () => {
    if (row.open && !history.childElementCount) showHistory(gap, history);
  });
  return row;
}

export function keepOpen(old, fresh) {
  fresh.open = old.open;
}

function facts(gap) {
  const pairs = [
    ["Gap", gap.id],
    ["Written at the source", gap.event_time ? moment(gap.event_time) : "unknown"],
    ["Confirmed", moment(gap.confirmed_at)],
    ["Found by", words(gap.detector)],
    ["Target id", gap.target_id ?? "none"],
    ["Fields that differ", gap.fields.length ? gap.fields.join(", ") : "–"],
    ["Seen", `${count(gap.occurrences)} ×`],
    ["Note", gap.note],
  ];
  return el(
    "dl",
    { class: "facts" },
    pairs.filter(([, value]) => value).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", { class: "mono" }, value))),
  );
}

function evidence(gap) {
  if (!gap.evidence.length) return el("p", { class: "muted" }, "No evidence was kept.");
  const head = ["Side", "Where", "Position", "Time", "What was there"].map((text) => el("th", { scope: "col" }, text));
  const rows = gap.evidence.map((one) =>
    el(
      "tr",
      {},
      el("td", {}, one.side ?? ""),
      el("td", { class: "mono" }, one.topic ? `${one.topic} [${one.partition}] @ ${one.offset}` : "read from the store"),
      el("td", { class: "mono" }, text(one.position)),
      el("td", { class: "mono" }, one.time ? moment(one.time) : "–"),
      el("td", { class: "mono" }, found(one)),
    ),
  );
  return el(
    "div",
    { class: "scroll" },
    el("table", { class: "evidence" }, el("caption", {}, "Evidence"), el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)),
  );
}

function found(one) {
  const parts = [one.read, one.operation].filter((part) => part !== null && part !== undefined).map(text);
  const rest = Object.entries(one).filter(([name, value]) => !EVIDENCE.has(name) && value !== null && value !== "");
  if (one.values) rest.push(...Object.entries(one.values));
  return [...parts, ...rest.map(([name, value]) => `${words(name)}: ${text(value)}`)].join(" · ") || "–";
}

function text(value) {
  if (value === null || value === undefined) return "–";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

async function showHistory(gap, into) {
  into.replaceChildren(el("span", { class: "muted" }, "History is being read …"));
  try {
    const { body } = await get(`/api/v1/gaps/${encodeURIComponent(gap.id)}`);
    const lines = body.history.map((one) =>
      el("li", {}, el("span", { class: "mono" }, moment(one.at)), ` ${words(one.event)} by ${one.actor}`, one.note ? `: ${one.note}` : ""),
    );
    into.replaceChildren(el("h3", {}, "History"), el("ol", {}, lines));
  } catch (error) {
    into.replaceChildren(el("span", { class: "muted" }, `The history could not be read: ${error.message}`));
  }
}

const LABELS = { compared: "compared", differences: "differences", started: "started", took: "took" };
const RUN_STATUS = { succeeded: "HEALTHY", inconclusive: "UNKNOWN", failed: "ERROR", aborted: "ERROR" };

export function sweepRow(run) {
  const counts = run.counts;
  const took = run.ended_at && run.started_at ? span((Date.parse(run.ended_at) - Date.parse(run.started_at)) / 1000) : "–";
  const bar = el("progress", { max: "1", value: run.progress ?? (run.state === "running" ? undefined : 0), "aria-label": "Progress" });
  const compared = counts.source_keys === undefined ? "–" : `${count(counts.source_keys)} / ${count(counts.target_keys)}`;
  const cell = (name, ...children) => el("span", { class: name, "data-label": LABELS[name] }, ...children);
  return el(
    "div",
    { class: "row sweep-row", title: run.id },
    el("span", { class: "clip" }, run.pipeline),
    el("span", {}, el("span", { class: "tag", "data-run": RUN_STATUS[run.state] ?? run.state }, run.state)),
    el("span", { class: "bar-cell" }, bar),
    cell("compared", compared),
    cell("differences", counts.differences === undefined ? "–" : count(counts.differences)),
    cell("started", run.started_at ? ago(run.started_at) : "queued"),
    cell("took", took),
    run.error ? el("span", { class: "run-error" }, run.error) : null,
  );
}
