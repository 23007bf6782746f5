// The header of a session: title, status, cost, duration and trace.

import { now } from "../api.js";
import { costSoFar } from "../model/figures.js";
import { costAgainst, elapsed } from "../model/format.js";
import { oneLine } from "../model/safe.js";
import { STATUS } from "../model/words.js";
import { h, setText } from "../parts/dom.js";
import { everyTick } from "../parts/ticker.js";

/** Return a pill with a status; `update(status)` changes it. */
export function statusPill(status) {
  const text = h("span");
  const node = h("span.pill", {}, h("span.pill-dot", { "aria-hidden": "true" }), text);
  const update = (value) => {
    node.dataset.status = value;
    setText(text, STATUS[value] ?? value);
  };
  update(status);
  return { node, update };
}

const CONNECTION = {
  connecting: "Connecting…",
  open: "",
  lost: "Connection lost, trying again",
  over: "",
};

export class SessionHeader {
  constructor({ onPanel }) {
    this.pill = statusPill("starting");
    this.pill.node.setAttribute("role", "status");
    this.title = h("h1.title");
    this.connection = h("span.connection", { role: "status", hidden: true });
    this.cost = h("span.figure-value");
    this.costFigure = figure("Cost", this.cost);
    this.budget = h("span.budget", { hidden: true }, h("span.budget-bar"));
    this.costFigure.append(this.budget);
    this.elapsed = h("span.figure-value");
    this.trace = h("span.trace");
    this.panel = h("button", { type: "button", "aria-label": "Details", onclick: onPanel }, "Details");
    this.node = h(
      "div.session-head",
      {},
      h("div.head-line", {}, this.title, this.pill.node, this.connection),
      h("div.figures", {}, this.costFigure, figure("Elapsed", this.elapsed), this.trace, this.panel),
    );
    this.stop = everyTick(() => this.tick());
  }

  destroy() {
    this.stop();
  }

  update(state, record) {
    this.state = state;
    this.record = record;
    this.pill.update(state.lastId ? state.status : record.status);
    setText(this.title, oneLine(record.title || "Untitled session", 200));
    this.updateCost(costSoFar(state, record), record.max_budget_usd, state.turnSince !== null && !state.closed);
    this.updateTrace(record.trace_id ?? state.traceId, record.trace_url);
    this.tick();
  }

  /** Show the cost of the ended turns; that of a running turn is known only at its end. */
  updateCost(cost, budget, isRunning) {
    setText(this.costFigure.firstChild, isRunning ? "Cost so far" : "Cost");
    this.costFigure.title = isRunning ? "Of the turns that have ended" : "";
    setText(this.cost, costAgainst(cost, budget));
    this.budget.hidden = !budget;
    if (!budget) return;
    const part = Math.min(1, cost / budget);
    this.budget.firstChild.style.setProperty("--part", part.toFixed(4));
    this.budget.classList.toggle("near", part >= 0.8);
  }

  updateTrace(id, url) {
    const key = `${id} ${url}`;
    if (!id || this.traceKey === key) return;
    this.traceKey = key;
    const short = `${id.slice(0, 8)}…`;
    const isLink = typeof url === "string" && /^https?:\/\//.test(url);
    const link = isLink
      ? h("a.trace-link", { href: url, target: "_blank", rel: "noreferrer noopener", title: id }, `${short} ↗`)
      : h("button.trace-link", { type: "button", title: `Copy ${id}`, onclick: (event) => copy(event.currentTarget, id, short) }, short);
    this.trace.replaceChildren(figure("Trace", link));
  }

  tick() {
    if (!this.state) return;
    const { firstTs, lastTs, closed } = this.state;
    const from = firstTs ?? this.record.created_at;
    const to = closed || this.record.closed_at ? (lastTs ?? this.record.closed_at) : now();
    setText(this.elapsed, elapsed(to - from));
  }

  connect(state) {
    const text = CONNECTION[state] ?? "";
    this.connection.hidden = !text;
    setText(this.connection, text);
  }
}

function figure(label, ...content) {
  return h("span.figure", {}, h("span.figure-label", {}, label), content);
}

async function copy(button, id, short) {
  try {
    await navigator.clipboard.writeText(id);
    button.textContent = "Copied";
  } catch {
    button.textContent = id; // no clipboard over plain http; the id can be selected
    return;
  }
  setTimeout(() => (button.textContent = short), 1500);
}
