// The transcript: one list item for each item of the state; a few are added in each frame, and only changed ones updated.

import { dateTime, duration, money, offset } from "../model/format.js";
import { oneLine, revealed } from "../model/safe.js";
import { CLOSED, commandLine } from "../model/words.js";
import { h, oncePerFrame, setText } from "../parts/dom.js";
import { prose, shown } from "../parts/text.js";
import { attachmentLinks } from "./attach.js";
import { fold, ToolCard } from "./tool.js";

const ITEMS_A_FRAME = 250;
const ROWS_A_BLOCK = 50;
const AIM_FRAMES = 8;
const NEAR_END = 120;

export class Transcript {
  /**
   * `me()` is the reader's name; `onLink(eventId)` is called when an item's number is clicked, `onRewind(messageId)` to
   * set files back to a prompt; null if the reader may not.
   */
  constructor({ sessionId, me, onLink, onRewind = null }) {
    this.sessionId = sessionId;
    this.me = me;
    this.onLink = onLink;
    this.onRewind = onRewind;
    this.views = [];
    this.seen = [];
    this.follows = true;
    this.list = h("div.transcript", { role: "list", "aria-label": "Transcript" });
    this.block = null;
    this.live = h("li.item.live", { hidden: true });
    this.working = h("li.item.working", { hidden: true }, h("span.dots", { "aria-hidden": "true" }, h("i"), h("i"), h("i")), h("span", {}));
    this.tail = h("ol.items.tail", {}, this.live, this.working);
    this.latest = h("button.latest", { type: "button", hidden: true, onclick: () => this.toEnd() }, "Latest ↓");
    this.scroller = h("div.scroller", { tabindex: "0", "aria-label": "Transcript, scrollable", role: "region" }, this.list, this.tail);
    this.node = h("div.transcript-box", {}, this.scroller, this.latest);
    this.renderSoon = oncePerFrame(() => this.render());
    this.scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.growth = new ResizeObserver(() => this.follows && this.toEnd());
    this.growth.observe(this.list);
    this.growth.observe(this.tail);
    this.growth.observe(this.scroller);
  }

  destroy() {
    this.growth.disconnect();
  }

  update(state) {
    this.state = state;
    this.render();
  }

  render() {
    const { items } = this.state;
    for (let at = 0; at < this.views.length; at += 1) {
      if (this.seen[at] !== items[at]) {
        this.views[at].update?.(items[at]);
        this.views[at].row.hidden = items[at].isTold === true;
        this.seen[at] = items[at];
      }
    }
    this.grow(Math.min(items.length, this.views.length + ITEMS_A_FRAME));
    this.renderLive();
    if (this.views.length < items.length) this.renderSoon();
    else if (this.wanted !== undefined) this.jump(this.wanted);
    this.node.dataset.ready = String(this.views.length === items.length);
  }

  grow(end) {
    const { items, firstTs } = this.state;
    for (let at = this.views.length; at < end; at += 1) {
      const item = items[at];
      const view = viewOf(item, this);
      const row = this.row(item, view, firstTs);
      this.views.push({ ...bound(view), row });
      this.seen.push(item);
      const parent = item.lane === "" ? undefined : this.views[this.state.toolItems.get(item.lane)];
      if (parent?.card) parent.card.adopt(row);
      else this.append(row);
    }
  }

  /** Add a row to the last block of rows; the browser lays out only visible blocks, so thousands of rows are cheap. */
  append(row) {
    if (this.block === null || this.block.childElementCount >= ROWS_A_BLOCK) {
      this.block = h("ol.items.block", { role: "presentation" });
      this.list.append(this.block);
    }
    this.block.append(row);
  }

  row(item, view, firstTs) {
    const row = h("li.item", { role: "listitem", "data-kind": item.kind });
    row.hidden = item.isTold === true;
    if (item.isFirst) row.classList.add("first");
    if (item.id !== null) {
      row.dataset.event = item.id;
      const place = offset(item.ts - (firstTs ?? item.ts));
      const onclick = (click) => {
        click.preventDefault();
        this.onLink(item.id);
      };
      row.append(h("a.place", { href: `#/s/${encodeURIComponent(this.sessionId)}/e/${item.id}`, title: `Event ${item.id}, ${dateTime(item.ts)}`, onclick, "aria-label": `Link to event ${item.id}` }, place));
    }
    row.append(view.node);
    return row;
  }

  renderLive() {
    const { live, status, turnSince } = this.state;
    this.live.hidden = !live || !(live.text || live.isCut);
    if (!this.live.hidden) this.writeLive(live);
    const isBusy = status === "starting" || (status === "running" && !live?.text);
    this.working.hidden = !isBusy || this.views.length < this.state.items.length;
    setText(this.working.lastChild, turnSince === null ? "Starting the agent" : "Working");
  }

  /** Add only the new part of the text. */
  writeLive(live) {
    const goesOn = this.written && this.written.messageId === live.messageId && live.text.startsWith(this.written.text);
    if (!goesOn) {
      this.liveText = h("p.live-text", { dir: "auto" });
      if (live.isCut) this.liveText.append(h("span.muted", {}, "… "));
      this.live.replaceChildren(this.liveText);
    }
    this.liveText.append(...shown(live.text.slice(goesOn ? this.written.text.length : 0)));
    this.written = live;
  }

  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const isUp = scrollTop < (this.lastTop ?? 0);
    this.lastTop = scrollTop;
    if (this.isAiming) return;
    const isNear = scrollHeight - scrollTop - clientHeight < NEAR_END;
    if (isNear) this.follows = true;
    else if (isUp) this.follows = false;
    this.latest.hidden = this.follows;
  }

  toEnd() {
    this.follows = true;
    this.latest.hidden = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** Show the item of an event, or the last one before it, once it is loaded. */
  jump(eventId) {
    this.wanted = eventId;
    this.follows = false;
    const at = placeOf(this.state, eventId);
    if (at < 0 || at >= this.views.length || this.state.lastId < eventId) return;
    this.wanted = undefined;
    this.openParents(this.state.items[at]);
    const { row } = this.views[at];
    this.views[at].card?.open();
    this.node.querySelector(".item.target")?.classList.remove("target");
    row.classList.add("target");
    row.querySelector("button, a")?.focus({ preventScroll: true });
    this.aim(row, AIM_FRAMES);
    this.latest.hidden = false;
  }

  /** Scroll to a row for several frames, as the browser only estimates the height of rows out of sight. */
  aim(row, frames) {
    this.isAiming = frames > 0;
    row.scrollIntoView({ block: "center" });
    if (this.isAiming) requestAnimationFrame(() => this.aim(row, frames - 1));
  }

  openParents(item) {
    for (let lane = item.lane; lane !== ""; ) {
      const at = this.state.toolItems.get(lane);
      this.views[at]?.card?.open();
      lane = this.state.items[at]?.lane ?? "";
    }
  }

  /** Move the focus to the next (1) or previous (-1) item that can be unfolded. */
  step(direction) {
    const all = [...this.scroller.querySelectorAll(".fold-line")].filter((each) => each.offsetParent !== null);
    const top = this.scroller.getBoundingClientRect().top;
    let at = all.indexOf(document.activeElement);
    if (at < 0) at = direction > 0 ? all.findIndex((each) => each.getBoundingClientRect().top >= top) - 1 : all.length;
    const next = all[Math.max(0, Math.min(all.length - 1, at + direction))];
    if (!next) return;
    this.follows = false;
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  }
}

/** Return the index of the item that an event belongs to. */
function placeOf(state, eventId) {
  const event = state.events.find((each) => each.id === eventId)?.event;
  const toolUseId = event?.data?.tool_use_id;
  if (toolUseId !== undefined && state.toolItems.has(toolUseId)) return state.toolItems.get(toolUseId);
  return state.items.findLastIndex((item) => item.id !== null && item.id <= eventId && !item.isTold);
}

function bound(view) {
  return view instanceof ToolCard ? { card: view, update: (item) => view.update(item) } : { update: view.update };
}

function viewOf(item, { sessionId, me, onRewind }) {
  switch (item.kind) {
    case "tool":
      return new ToolCard(item, me);
    case "prompt":
      return promptView(item, sessionId, onRewind);
    case "text":
      return { node: prose(item.text) };
    case "thinking":
      return { node: thinking(item) };
    case "result":
      return { node: turnEnd(item) };
    case "error":
      return { node: h("div.notice.bad", {}, h("strong", {}, `Error: ${item.data.error_type}`), h("span", {}, shown(` ${item.data.message}`))) };
    case "log":
      return { node: logLine(item) };
    case "gap":
      return { node: h("div.notice.warn", {}, `Events ${item.first} to ${item.last} are missing: they are no longer kept.`) };
    default:
      return { node: note(item, me) };
  }
}

const DELIVERY = { queued: "Queued: read after this turn", unread: "Never read: the session ended before", unsent: "Not sent" };

function promptView(item, sessionId, onRewind) {
  const mark = h("span.chip.delivery");
  const rewind = h("button.link.rewind", { type: "button", hidden: true, onclick: () => onRewind(item.messageId) }, "Set files back to here");
  const fault = h("div.notice.bad", { hidden: true });
  const update = (now) => {
    item = now;
    fault.hidden = !now.error;
    setText(fault, revealed(now.error ?? ""));
    mark.hidden = !now.delivery;
    setText(mark, DELIVERY[now.delivery] ?? "");
    rewind.hidden = !now.messageId || !onRewind;
  };
  update(item);
  const who = item.sentBy ? h("span.who", {}, shown(item.sentBy)) : null;
  const files = item.attachments.length ? attachmentLinks(sessionId, item.attachments) : null;
  return { node: h("div.prompt", {}, who, mark, h("div.prompt-text", { dir: "auto" }, shown(item.text)), files, fault, rewind), update };
}

function thinking(item) {
  const line = [h("span.verb", {}, "Thought"), h("span.object", {}, oneLine(item.text, 140))];
  return h("div.thinking", {}, fold(h("span.what", {}, line[0], " ", line[1]), () => prose(item.text)).nodes);
}

function logLine(item) {
  const line = h("span.what", {}, h("span.verb", {}, item.stream), " ", h("span.object", {}, oneLine(item.text, 160)));
  return h("div.log", {}, fold(line, () => h("pre.output", {}, shown(item.text))).nodes);
}

function turnEnd(item) {
  const words = [`Turn ${item.turn}`, duration(item.durationMs), money(item.costUsd)];
  const isInterrupted = item.isError && item.errorType === "cancelled";
  if (isInterrupted) words[0] += " interrupted";
  else if (item.isError) words[0] += " failed";
  const node = h("div.turn-end", {}, h("span", {}, words.join("  ·  ")));
  if (!item.isError || isInterrupted) return node;
  const why = [item.errorType ?? item.subtype, item.text].filter(Boolean).join(": ");
  return h("div", {}, h("div.notice.bad", {}, shown(why)), node);
}

function note({ note: kind, data }, me) {
  if (kind === "sandbox") {
    const place = data.kind === "local" ? "Runs on this machine" : `Sandbox ${data.sandbox_id ?? ""} (${data.kind})`;
    return h("div.note", {}, shown(data.creation_ms ? `${place}, ready after ${duration(data.creation_ms)}` : place));
  }
  if (kind === "adopted") return h("div.note", {}, shown(`The service was restarted; the session goes on${data.reason ? ` (${data.reason})` : ""}`));
  if (kind === "command") return h(data.error ? "div.notice.warn" : "div.note", {}, shown(oneLine(commandLine(data.command, data.error, me()), 400)));
  if (kind === "resumed") return h("div.note", {}, "An earlier conversation goes on");
  const isBad = ["failed", "lost"].includes(data.reason);
  const by = data.closed_by && data.reason === "closed" ? `Closed by ${data.closed_by}` : null;
  const words = by ?? CLOSED[data.reason] ?? `Closed: ${data.reason}`;
  if (!isBad) return h("div.note", {}, shown(words));
  if (data.reason === "lost") return h("div.notice.bad", {}, h("strong", {}, words), h("span", {}, shown(`${data.message ? `: ${data.message}` : ""}. Nothing of it goes on; a new session can be started.`)));
  return h("div.notice.bad", {}, h("strong", {}, words), h("span", {}, shown([data.error_type, data.message].filter(Boolean).map((each) => ` ${each}`).join(":"))));
}
