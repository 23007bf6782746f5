// The card of a waiting question request: options and free text for each of its questions.

import { api } from "../api.js";
import { h, setText } from "../parts/dom.js";
import { cuedBox } from "../parts/scroll.js";
import { shown } from "../parts/text.js";
import { countdownView } from "./approval.js";

export class QuestionCard {
  /** `owner` as for an ApprovalCard. */
  constructor(request, owner, laneLabel) {
    this.request = request;
    this.owner = owner;
    this.clock = countdownView(request, () => this.expire());
    this.message = h("p.card-message", { hidden: true, role: "alert" });
    this.fields = request.questions.map((each, at) => questionField(each, `${request.id}-${at}`));
    this.send = h("button.primary", { type: "submit" }, "Answer");
    this.body = cuedBox(this.fields.map((field) => field.node));
    const who = laneLabel ? h("span.lane", {}, shown(laneLabel)) : null;
    this.node = h(
      "form.card.question",
      { tabindex: "-1", "aria-label": "Question", "data-request": request.id, onsubmit: (event) => this.submit(event) },
      h("header.card-head", {}, h("h3", {}, "Claude asks you"), who, this.clock.node),
      this.body.node,
      this.message,
      owner.canDecide ? h("div.actions", {}, this.send) : h("p.muted", {}, "You may look, not answer."),
    );
    if (!owner.canDecide) this.disable();
  }

  destroy() {
    this.clock.stop();
    this.body.stop();
  }

  focus() {
    (this.node.querySelector("input:not([disabled])") ?? this.node).focus();
  }

  disable() {
    this.node.querySelectorAll("button:not(.more-below), input").forEach((each) => (each.disabled = true));
  }

  async submit(event) {
    event.preventDefault();
    if (this.isBusy || this.hasExpired) return;
    const answers = this.fields.map((field) => [field.question, field.answer()]);
    const open = answers.findIndex(([, answer]) => answer === "");
    if (open >= 0) {
      this.tell(answers.length > 1 ? `Question ${open + 1} has no answer yet.` : "Choose an option, or write an answer.");
      return this.fields[open].node.querySelector("input").focus();
    }
    await this.post(Object.fromEntries(answers));
  }

  async post(answers) {
    this.isBusy = true;
    this.hadFocus = this.node.contains(document.activeElement); // a disabled element loses the focus
    this.send.disabled = true;
    try {
      await api.answer(this.owner.sessionId, this.request.id, { answers, ...this.owner.decidedBy() });
      this.owner.settled(this.request, null, "Answered.");
    } catch (problem) {
      this.isBusy = false;
      this.hadFocus = false;
      this.send.disabled = false;
      if (problem.status === 409 || problem.status === 404) this.owner.settled(this.request, problem, "");
      else this.tell(problem.message);
    }
  }

  tell(text) {
    this.message.hidden = !text;
    setText(this.message, text);
  }

  expire() {
    this.hasExpired = true;
    this.node.classList.add("expired");
    this.disable();
    this.tell("Nobody answered in time.");
  }
}

/** Return one question {node, question, answer()}; an answer is the chosen labels and the free text, comma-separated. */
function questionField({ question, header, options, multiSelect }, name) {
  const kind = multiSelect ? "checkbox" : "radio";
  const own = h("input.own", { type: "text", placeholder: "Something else", "aria-label": "Your own answer", maxlength: "4000" });
  const choices = (Array.isArray(options) ? options : []).map((option, at) => {
    const input = h("input", { type: kind, name, id: `${name}-${at}`, value: String(option.label) });
    return { input, node: h("label.option", { for: `${name}-${at}` }, input, h("span", {}, h("span.option-label", {}, shown(String(option.label))), option.description ? h("span.option-about", {}, shown(String(option.description))) : null)) };
  });
  if (!multiSelect) {
    own.addEventListener("input", () => own.value && choices.forEach(({ input }) => (input.checked = false)));
    choices.forEach(({ input }) => input.addEventListener("change", () => (own.value = "")));
  }
  const legend = h("legend", {}, header ? h("span.tag", {}, shown(String(header))) : null, h("span", { dir: "auto" }, shown(String(question))));
  const answer = () => [...choices.filter(({ input }) => input.checked).map(({ input }) => input.value), own.value.trim()].filter(Boolean).join(", ");
  return { node: h("fieldset", {}, legend, choices.map((choice) => choice.node), own), question: String(question), answer };
}
