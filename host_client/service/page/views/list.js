// The list of sessions, newest first, which refreshes itself.

import { api, now } from "../api.js";
import { ago, costAgainst } from "../model/format.js";
import { oneLine } from "../model/safe.js";
import { STATUS, toolName } from "../model/words.js";
import { setBadge } from "../parts/announce.js";
import { h, setText } from "../parts/dom.js";
import { watchEnd } from "../parts/scroll.js";
import { everyTick } from "../parts/ticker.js";
import { showCreate } from "./create.js";
import { statusPill } from "./header.js";

const REFRESH_MS = 3000;
const PAGE = 50;

export class ListPage {
  constructor(context) {
    this.context = context;
    this.status = new URLSearchParams(location.hash.split("?")[1] ?? "").get("status") ?? "";
    this.rows = new Map();
    this.pages = 1;
    this.filters = ["", ...Object.keys(STATUS)].map((value) => h("button.filter", { type: "button", "aria-pressed": String(value === this.status), onclick: () => this.filter(value), "data-value": value }, value ? STATUS[value] : "All"));
    this.list = h("ul.sessions", { "aria-label": "Sessions" });
    this.note = h("div.empty-note", { hidden: true });
    this.problem = h("p.connection", { role: "status", hidden: true });
    this.more = h("button", { type: "button", hidden: true, onclick: () => this.showMore() }, "Show more");
    const start = context.me.role === "operator" ? h("button.primary", { type: "button", onclick: () => this.create() }, "New session") : null;
    const filters = h("div.filters", { role: "group", "aria-label": "Filter by status" }, this.filters);
    this.stopWatching = watchEnd(filters, (isMore) => filters.classList.toggle("goes-on", isMore));
    this.node = h("main.list-page", { id: "main", tabindex: "-1" }, h("div.list-head", {}, h("h1", {}, "Sessions"), this.problem, start), filters, this.list, this.note, h("div.list-foot", {}, this.more));
    this.stopTicking = everyTick(() => this.rows.forEach((row) => row.tick()));
    this.onVisible = () => !document.hidden && this.refresh();
    document.addEventListener("visibilitychange", this.onVisible);
    this.refresh();
  }

  destroy() {
    this.isGone = true;
    clearTimeout(this.timer);
    this.stopTicking();
    this.stopWatching();
    document.removeEventListener("visibilitychange", this.onVisible);
    setBadge({ waiting: 0 });
  }

  filter(value) {
    this.status = value;
    this.pages = 1;
    history.replaceState(null, "", value ? `#/?status=${value}` : "#/");
    this.filters.forEach((each) => each.setAttribute("aria-pressed", String(each.dataset.value === value)));
    this.refresh();
  }

  showMore() {
    this.pages += 1;
    this.refresh();
  }

  create() {
    showCreate(this.context.me, (session) => (location.hash = `#/s/${encodeURIComponent(session.id)}`));
  }

  async refresh() {
    clearTimeout(this.timer);
    const turn = (this.turn = (this.turn ?? 0) + 1);
    try {
      const { sessions, next } = await this.load();
      if (this.isGone || turn !== this.turn) return;
      this.show(sessions, next);
    } catch (problem) {
      if (this.isGone || turn !== this.turn) return;
      if (problem.status === 401) return this.context.onUnauthorized();
      this.problem.hidden = false;
      setText(this.problem, problem.message);
    }
    if (!document.hidden) this.timer = setTimeout(() => this.refresh(), REFRESH_MS);
  }

  /** Load as many pages as are shown. */
  async load() {
    const sessions = [];
    let next = null;
    for (let page = 0; page < this.pages; page += 1) {
      const answer = await api.sessions({ status: this.status, limit: PAGE, before: next });
      sessions.push(...answer.sessions);
      next = answer.next;
      if (!next) break;
    }
    return { sessions, next };
  }

  show(sessions, next) {
    this.problem.hidden = true;
    const rows = new Map(sessions.map((session) => [session.id, this.rows.get(session.id) ?? new Row(session.id)]));
    this.rows.forEach((row, id) => !rows.has(id) && row.node.remove());
    this.rows = rows;
    sessions.forEach((session, at) => {
      const row = rows.get(session.id);
      row.update(session);
      if (this.list.children[at] !== row.node) this.list.insertBefore(row.node, this.list.children[at] ?? null);
    });
    this.more.hidden = !next;
    this.showEmpty(sessions.length === 0);
    setBadge({ title: "Sessions", waiting: sessions.filter((session) => session.status === "needs_you").length });
  }

  showEmpty(isEmpty) {
    this.note.hidden = !isEmpty;
    if (!isEmpty) return;
    const words = this.status ? `No session is ${STATUS[this.status].toLowerCase()}.` : "No sessions yet.";
    this.note.replaceChildren(h("p", {}, this.status === "needs_you" ? "Nothing waits for you." : words));
  }
}

function waitsFor({ kind, tool_name: name }) {
  return kind === "question" || name === "AskUserQuestion" ? "Question" : oneLine(toolName(name), 30);
}

/** The row of one session in the list. */
class Row {
  constructor(id) {
    this.pill = statusPill("starting");
    this.title = h("span.row-title");
    this.user = h("span.row-user");
    this.waiting = h("span.waiting", { hidden: true });
    this.cost = h("span.row-cost");
    this.age = h("span.row-age");
    this.node = h("li", {}, h("a.session-row", { href: `#/s/${encodeURIComponent(id)}` }, this.pill.node, h("span.row-main", {}, this.title, this.waiting), this.user, this.cost, this.age));
  }

  update(session) {
    this.session = session;
    this.node.dataset.status = session.status;
    this.pill.update(session.status);
    setText(this.title, oneLine(session.title || "Untitled session", 160));
    setText(this.user, oneLine(session.user_id ?? "", 40));
    const isFirstTurn = !session.cost_usd && ["starting", "running", "needs_you"].includes(session.status);
    setText(this.cost, costAgainst(isFirstTurn ? null : session.cost_usd, session.max_budget_usd));
    const count = session.waiting?.length ?? 0;
    this.waiting.hidden = !count;
    if (count) setText(this.waiting, count === 1 ? waitsFor(session.waiting[0]) : `${count} decisions`);
    this.tick();
  }

  tick() {
    if (this.session) setText(this.age, ago(now() - this.session.created_at));
  }
}
