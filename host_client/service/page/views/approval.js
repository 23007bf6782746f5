// The card of a waiting approval: the exact tool call, which a person allows, edits or denies.

import { api, now } from "../api.js";
import { countdown } from "../model/format.js";
import { hasHidden } from "../model/safe.js";
import { rememberedRules, toolName, wish } from "../model/words.js";
import { h, isTyping, setText } from "../parts/dom.js";
import { cuedBox } from "../parts/scroll.js";
import { shown } from "../parts/text.js";
import { everyTick } from "../parts/ticker.js";
import { inputView } from "./input.js";

/** Count down to a request's expiry with a text and a bar. Returns {node, stop}; `onEnd` is called once. */
export function countdownView(request, onEnd) {
  const text = h("span.countdown-text");
  const bar = h("span.countdown-bar");
  const node = h("div.countdown", { role: "timer" }, text, h("span.countdown-track", { "aria-hidden": "true" }, bar));
  let hasEnded = false;
  const stop = everyTick(() => {
    const left = request.expiresAt - now();
    const part = Math.max(0, Math.min(1, left / Math.max(1, request.expiresAt - request.ts)));
    bar.style.setProperty("--left", part.toFixed(3));
    node.classList.toggle("soon", left < 30);
    setText(text, left > 0 ? `${countdown(left)} left` : "Expired");
    if (left <= 0 && !hasEnded) {
      hasEnded = true;
      queueMicrotask(onEnd); // called after the card is complete
    }
  });
  return { node, stop };
}

export class ApprovalCard {
  /** `owner` has: sessionId, canDecide, decidedBy() and settled(request, problem | null, text). */
  constructor(request, owner, laneLabel) {
    this.request = request;
    this.owner = owner;
    this.isCommand = request.toolName === "Bash" && typeof request.input.command === "string";
    this.node = h("section.card.approval", { tabindex: "-1", "aria-label": `Approval: ${toolName(request.toolName)}`, "data-request": request.id });
    this.clock = countdownView(request, () => this.expire());
    this.message = h("p.card-message", { hidden: true, role: "alert" });
    this.editor = this.editorView();
    this.denial = this.denialView();
    this.exact = h("div.exact-box", {}, inputView(request.toolName, request.input));
    this.body = cuedBox(this.about(), this.exact, this.editor);
    this.node.append(this.head(laneLabel), this.body.node, this.message, ...(owner.canDecide ? [this.buttons(), this.denial] : [h("p.muted", {}, "You may look, not decide.")]));
    this.node.addEventListener("keydown", (event) => this.key(event));
  }

  destroy() {
    this.clock.stop();
    this.body.stop();
  }

  focus() {
    this.node.focus();
  }

  head(laneLabel) {
    const who = laneLabel ? h("span.lane", {}, shown(laneLabel)) : null;
    return h("header.card-head", {}, h("h3", {}, ["Claude wants to ", ...shown(wish(this.request.toolName))]), who, this.clock.node);
  }

  about() {
    const { reason } = this.request;
    return reason ? [h("p.reason", {}, shown(String(reason)))] : [];
  }

  editorView() {
    const { input } = this.request;
    const label = this.isCommand ? "Command to run instead" : "Input to use instead (JSON)";
    this.text = h("textarea.code-input", { spellcheck: "false", autocapitalize: "off", rows: "4", "aria-label": label });
    this.text.value = this.isCommand ? input.command : JSON.stringify(input, null, 2);
    this.hidden = h("p.hidden-note", { hidden: true });
    this.text.addEventListener("input", () => this.edited());
    return h("div.editor", { hidden: true }, h("label", {}, label), this.text, this.hidden);
  }

  edited() {
    const { value } = this.text;
    this.hidden.hidden = !hasHidden(value);
    this.hidden.replaceChildren("Holds hidden characters: ", ...shown(value.slice(0, 2000)));
    this.text.rows = Math.max(2, Math.min(14, value.split("\n").length));
  }

  denialView() {
    this.reason = h("input", { type: "text", placeholder: "Why not, or what to do instead (optional)", "aria-label": "Reason for the denial", maxlength: "2000" });
    const send = (event) => {
      event.preventDefault();
      this.decide({ decision: "deny", ...(this.reason.value.trim() ? { message: this.reason.value.trim() } : {}) });
    };
    return h("form.denial", { hidden: true, onsubmit: send }, this.reason, h("button.danger", { type: "submit" }, "Deny"), h("button.quiet", { type: "button", onclick: () => this.showDenial(false) }, "Cancel"));
  }

  buttons() {
    const rules = rememberedRules(this.request.suggestions);
    this.allow = h("button.primary", { type: "button", onclick: () => this.permit(false) }, "Allow once");
    this.edit = h("button", { type: "button", "aria-expanded": "false", onclick: () => this.showEditor(this.editor.hidden) }, "Edit");
    this.deny = h("button.danger-quiet", { type: "button", onclick: () => this.showDenial(true) }, "Deny…");
    this.remember = rules.length
      ? h("button.remember", { type: "button", onclick: () => this.permit(true) }, h("span", {}, "Allow and remember"), h("span.rule", {}, rules.map((rule, at) => [at ? ", " : "", ...shown(rule)])))
      : null;
    this.actions = h("div.actions", {}, this.allow, this.remember, this.edit, this.deny);
    return this.actions;
  }

  showEditor(isOpen) {
    this.editor.hidden = !isOpen;
    this.edit.setAttribute("aria-expanded", String(isOpen));
    setText(this.edit, isOpen ? "Undo the edit" : "Edit");
    setText(this.allow, isOpen ? "Allow as edited" : "Allow once");
    if (this.remember) this.remember.hidden = isOpen;
    this.tell("");
    if (isOpen) {
      this.edited();
      this.text.focus();
      this.editor.scrollIntoView({ block: "nearest" });
    }
  }

  showDenial(isOpen) {
    this.denial.hidden = !isOpen;
    this.actions.hidden = isOpen;
    (isOpen ? this.reason : this.deny).focus();
  }

  /** Return the edited input; null if nothing was edited. Throws an error for a person if it is not a JSON object. */
  editedInput() {
    if (this.editor.hidden) return null;
    if (this.isCommand) return this.text.value === this.request.input.command ? null : { ...this.request.input, command: this.text.value };
    let value;
    try {
      value = JSON.parse(this.text.value);
    } catch (error) {
      throw new Error(`This is not JSON: ${error.message}`);
    }
    if (value === null || typeof value !== "object" || Array.isArray(value)) throw new Error("The input must be a JSON object: { … }");
    return JSON.stringify(value) === JSON.stringify(this.request.input) ? null : value;
  }

  permit(remember) {
    let changed;
    try {
      changed = this.editedInput();
    } catch (error) {
      return this.tell(error.message);
    }
    return this.decide({ decision: "allow", ...(remember ? { remember: true } : {}), ...(changed ? { updated_input: changed } : {}) });
  }

  async decide(body) {
    if (this.isBusy || this.hasExpired) return;
    this.busy(true);
    try {
      const { owner, request } = this;
      await api.decide(owner.sessionId, request.id, { ...body, input_sha256: request.inputSha256, ...owner.decidedBy() });
      owner.settled(request, null, body.decision === "deny" ? "Denied" : body.updated_input ? "Allowed with changes" : "Allowed");
    } catch (problem) {
      this.busy(false);
      if (problem.status === 409 || problem.status === 404) this.owner.settled(this.request, problem, "");
      else this.tell(problem.message);
    }
  }

  busy(isBusy) {
    this.isBusy = isBusy;
    this.hadFocus = isBusy && this.node.contains(document.activeElement); // a disabled element loses the focus
    this.node.toggleAttribute("aria-busy", isBusy);
    this.node.querySelectorAll("button, textarea, input").forEach((each) => {
      if (!each.matches(".exact-box button, .more-below")) each.disabled = isBusy || Boolean(this.hasExpired);
    });
  }

  tell(text) {
    this.message.hidden = !text;
    setText(this.message, text);
  }

  expire() {
    this.hasExpired = true;
    this.node.classList.add("expired");
    this.busy(false);
    this.tell("Nobody answered in time: the call is denied.");
  }

  key(event) {
    if (event.key === "Escape" && !this.denial.hidden) return void this.showDenial(false);
    if (event.key === "Escape" && isTyping(event.target)) return void this.focus();
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter" && event.target === this.text) return void this.permit(false);
    if (isTyping(event.target) || event.ctrlKey || event.metaKey || event.altKey || !this.owner.canDecide) return;
    const action = { y: () => this.permit(false), m: () => this.remember && !this.remember.hidden && this.permit(true), e: () => this.showEditor(this.editor.hidden), n: () => this.showDenial(true) }[event.key];
    if (!action || this.hasExpired) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }
}
