// The side panel: raw events (only visible rows exist), tools by use, and the session's properties.

import { costSoFar, toolTable } from "../model/figures.js";
import { dateTime, duration, money, offset, timeOfDay } from "../model/format.js";
import { oneLine } from "../model/safe.js";
import { toolName } from "../model/words.js";
import { h, oncePerFrame, setText, throttled } from "../parts/dom.js";
import { longText, shown } from "../parts/text.js";
import { AgentTab } from "./agent.js";

const ROW = 30;
const UPDATE_MS = 200;
const SPARE_ROWS = 8;

export class Panel {
  /** `onEnd` asks to close the session, `onCommand(command)` sends a command to the agent; null if the reader may not. */
  constructor({ onJump, onClose, onEnd, onCommand }) {
    this.tabs = { events: new EventList(onJump), tools: new ToolTable(), ...(onCommand ? { agent: new AgentTab(onCommand) } : {}), about: new About() };
    const names = { events: "Events", tools: "Tools", ...(onCommand ? { agent: "Agent" } : {}), about: "About" };
    this.buttons = Object.keys(names).map((key) => h("button.tab", { type: "button", role: "tab", id: `tab-${key}`, "aria-controls": `panel-${key}`, onclick: () => this.select(key) }, names[key]));
    this.pages = Object.entries(this.tabs).map(([key, tab]) => h("div.tab-page", { role: "tabpanel", id: `panel-${key}`, "aria-labelledby": `tab-${key}` }, tab.node));
    this.foot = onEnd ? h("div.panel-foot", {}, h("button.danger-quiet", { type: "button", onclick: onEnd }, "Close session")) : null;
    const list = h("div.tabs", { role: "tablist", "aria-label": "Details", onkeydown: (event) => this.key(event) }, this.buttons);
    this.node = h("aside.panel", { "aria-label": "Details" }, h("div.panel-head", {}, list, h("button.icon.panel-close", { type: "button", "aria-label": "Close details", onclick: onClose }, "✕")), this.pages, this.foot);
    this.updateSoon = throttled(() => this.tabs[this.selected].update(this.state, this.record), UPDATE_MS);
    this.select("events");
  }

  destroy() {
    this.tabs.events.destroy();
  }

  update(state, record) {
    this.state = state;
    this.record = record;
    if (this.foot) this.foot.hidden = Boolean(state.closed);
    this.updateSoon();
  }

  select(key) {
    this.selected = key;
    Object.keys(this.tabs).forEach((each, at) => {
      const isSelected = each === key;
      this.buttons[at].setAttribute("aria-selected", String(isSelected));
      this.buttons[at].tabIndex = isSelected ? 0 : -1;
      this.pages[at].hidden = !isSelected;
    });
    if (this.state) this.updateSoon();
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const keys = Object.keys(this.tabs);
    const next = (keys.indexOf(this.selected) + step + keys.length) % keys.length;
    this.select(keys[next]);
    this.buttons[next].focus();
  }
}

/** The raw events, one row each, and the JSON of the selected one. */
class EventList {
  constructor(onJump) {
    this.onJump = onJump;
    this.types = new Set();
    this.events = [];
    this.filter = h("select", { "aria-label": "Type of events", onchange: () => this.refilter() }, h("option", { value: "" }, "All types"));
    this.count = h("span.muted");
    this.spacer = h("div.spacer");
    this.rows = h("div.rows");
    this.list = h("div.event-list", { tabindex: "0", role: "listbox", "aria-label": "Raw events" }, this.spacer, this.rows);
    this.detail = h("div.event-detail", { hidden: true });
    this.node = h("div.events", {}, h("div.event-filter", {}, this.filter, this.count), this.list, this.detail);
    this.drawSoon = oncePerFrame(() => this.draw());
    this.follows = true;
    this.list.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.list.addEventListener("keydown", (event) => this.key(event));
    this.size = new ResizeObserver(this.drawSoon);
    this.size.observe(this.list);
  }

  destroy() {
    this.size.disconnect();
  }

  update(state) {
    this.all = state.events;
    this.firstTs = state.firstTs;
    this.toolOf = (id) => state.items[state.toolItems.get(id)]?.name;
    for (const { event } of this.all.slice(this.known ?? 0)) this.addType(event.type);
    this.known = this.all.length;
    this.refilter();
    if (this.follows && this.chosen === undefined) this.list.scrollTop = this.events.length * ROW;
  }

  scrolled() {
    const { scrollTop, clientHeight } = this.list;
    this.follows = scrollTop + clientHeight >= this.events.length * ROW - 2 * ROW;
    this.drawSoon();
  }

  addType(type) {
    if (this.types.has(type)) return;
    this.types.add(type);
    this.filter.append(h("option", { value: type }, oneLine(type, 40)));
  }

  refilter() {
    const type = this.filter.value;
    this.events = type ? this.all.filter(({ event }) => event.type === type) : this.all;
    setText(this.count, `${this.events.length.toLocaleString()} of ${this.all.length.toLocaleString()}`);
    this.spacer.style.setProperty("height", `${this.events.length * ROW}px`);
    this.drawSoon();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - SPARE_ROWS);
    const last = Math.min(this.events.length, first + Math.ceil(this.list.clientHeight / ROW) + 2 * SPARE_ROWS);
    this.rows.style.setProperty("transform", `translateY(${first * ROW}px)`);
    this.rows.replaceChildren(...this.events.slice(first, last).map((entry) => this.row(entry)));
  }

  row(entry) {
    const { id, event } = entry;
    const isChosen = id === this.chosen;
    return h("div.event-row", { role: "option", "aria-selected": String(isChosen), "data-id": id, onclick: () => this.choose(entry) }, h("span.event-id", {}, id), h("span.event-type", { "data-type": event.type }, oneLine(event.type, 40)), h("span.event-brief", {}, brief(event, this.toolOf)), h("span.event-time", {}, offset(event.ts - (this.firstTs ?? event.ts))));
  }

  choose(entry) {
    this.chosen = entry.id;
    const head = h("div.event-head", {}, h("strong", {}, `Event ${entry.id}`), h("span.muted", { title: dateTime(entry.event.ts) }, timeOfDay(entry.event.ts)), h("button.link", { type: "button", onclick: () => this.onJump(entry.id) }, "Show in transcript"), h("button.icon", { type: "button", "aria-label": "Close event", onclick: () => this.unchoose() }, "✕"));
    this.detail.replaceChildren(head, longText(JSON.stringify(entry.event, null, 2), { className: "exact", lines: 200 }));
    this.detail.hidden = false;
    this.drawSoon();
  }

  unchoose() {
    this.chosen = undefined;
    this.detail.hidden = true;
    this.list.focus();
    this.drawSoon();
  }

  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !this.events.length) return;
    event.preventDefault();
    const at = this.events.findIndex((entry) => entry.id === this.chosen);
    const next = Math.max(0, Math.min(this.events.length - 1, at < 0 ? this.events.length - 1 : at + step));
    this.choose(this.events[next]);
    const top = next * ROW;
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    else if (top + ROW > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = top + ROW - this.list.clientHeight;
  }
}

function brief({ type, data }, toolOf) {
  if (!data) return "";
  if (type === "tool_result") return oneLine([toolName(toolOf(data.tool_use_id) ?? ""), data.tool_use_id].filter(Boolean).join(" · "), 60);
  const words = data.text ?? data.name ?? data.tool_name ?? data.decision ?? data.reason ?? data.message ?? data.subtype ?? data.tool_use_id;
  return typeof words === "string" ? oneLine(words, 60) : "";
}

class ToolTable {
  constructor() {
    this.body = h("tbody");
    this.empty = h("p.muted", {}, "No tool was called yet.");
    this.table = h("table.tool-table", {}, h("thead", {}, h("tr", {}, ["Tool", "Calls", "Failed", "Refused", "Median"].map((name) => h("th", { scope: "col" }, name)))), this.body);
    this.node = h("div.tab-body", {}, this.table, this.empty);
  }

  update({ items }) {
    const rows = toolTable(items);
    this.table.hidden = !rows.length;
    this.empty.hidden = rows.length > 0;
    this.body.replaceChildren(...rows.map((row) => h("tr", {}, h("th", { scope: "row" }, oneLine(toolName(row.name), 40)), [row.calls, row.failures, row.denied, duration(row.medianMs)].map((cell, at) => h(at === 1 && row.failures ? "td.bad" : "td", {}, String(cell))))));
  }
}

class About {
  constructor() {
    this.list = h("dl.about");
    this.node = h("div", {}, this.list);
  }

  update(state, record) {
    const { start, sandbox } = state;
    const cost = costSoFar(state, record);
    const rows = {
      Session: record.id, Title: record.title, User: record.user_id, Tenant: record.tenant_id, Model: state.model ?? record.model,
      "Permission mode": state.permissionMode, Directory: start?.cwd, Sandbox: sandbox ? [sandbox.kind, sandbox.sandbox_id].filter(Boolean).join(" ") : null,
      Created: record.created_at ? dateTime(record.created_at) : null, Turns: state.turn || record.turns, Cost: cost === null ? null : money(cost),
      Budget: record.max_budget_usd ? money(record.max_budget_usd) : null, Trace: record.trace_id ?? state.traceId, "Claude session": start?.session_id,
      Tools: start?.tools?.join(", "), Runner: start?.runner_version, ...record.metadata,
    };
    const entries = Object.entries(rows).filter(([, value]) => value !== null && value !== undefined && value !== "");
    const key = JSON.stringify(entries);
    if (key === this.key) return;
    this.key = key;
    this.list.replaceChildren(...entries.flatMap(([name, value]) => [h("dt", {}, shown(name)), h("dd", {}, shown(String(value)))]));
  }
}
