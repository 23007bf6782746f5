// The cards of all waiting approvals and questions, pinned above the composer.

import { plural, timeOfDay } from "../model/format.js";
import { decisionLine, toolName, wish } from "../model/words.js";
import { announce } from "../parts/announce.js";
import { h, setText } from "../parts/dom.js";
import { ApprovalCard } from "./approval.js";
import { QuestionCard } from "./question.js";

export class Dock {
  /** `owner`: {sessionId, canDecide, decidedBy()}; `focusElsewhere()` moves the focus when the last card is removed. */
  constructor(owner, notices, focusElsewhere) {
    this.notices = notices;
    this.owner = { ...owner, settled: (request, problem, text) => this.settled(request, problem, text) };
    this.focusElsewhere = focusElsewhere;
    this.cards = new Map();
    this.done = new Set();
    this.count = h("p.card-count", { hidden: true });
    this.stack = h("div.cards");
    this.node = h("div.dock-cards", { role: "region", "aria-label": "Waiting for you" }, this.count, this.stack);
  }

  destroy() {
    this.cards.forEach((card) => card.destroy());
  }

  update(state) {
    const waiting = state.waiting.filter((request) => !this.done.has(request.id));
    const ids = new Set(waiting.map((request) => request.id));
    for (const [id, card] of [...this.cards]) {
      if (!ids.has(id)) this.remove(id, card);
    }
    for (const request of waiting) {
      if (!this.cards.has(request.id)) this.addCard(request, state);
    }
    this.count.hidden = this.cards.size < 2;
    setText(this.count, `${plural(this.cards.size, "decision")} wait for you`);
  }

  addCard(request, state) {
    const lane = request.lane === "" ? null : state.lanes.find((each) => each.key === request.lane)?.label;
    const card = request.kind === "question" ? new QuestionCard(request, this.owner, lane) : new ApprovalCard(request, this.owner, lane);
    this.cards.set(request.id, card);
    this.stack.append(card.node);
    this.notices.clearConfirmation();
    const what = request.kind === "question" ? "Claude asks you a question" : `Approval needed: ${toolName(request.toolName)}`;
    announce(`${what}. Press A to go to it.`, { isUrgent: true });
  }

  remove(id, card) {
    const hadFocus = card.hadFocus || card.node.contains(document.activeElement);
    card.destroy();
    card.node.remove();
    this.cards.delete(id);
    if (hadFocus) this.focusFirst() || this.focusElsewhere();
  }

  /** Focus the oldest card; return whether there is one. */
  focusFirst() {
    const [first] = this.cards.values();
    first?.focus();
    return Boolean(first);
  }

  /** Remove the card of a request that was decided here, or by somebody else first, and show the outcome. */
  settled(request, problem, text) {
    this.done.add(request.id);
    const card = this.cards.get(request.id);
    if (card) this.remove(request.id, card);
    this.count.hidden = this.cards.size < 2;
    setText(this.count, `${plural(this.cards.size, "decision")} wait for you`);
    if (problem) this.notices.tell(tooLate(problem), { isProblem: true });
    else this.notices.tell(request.kind === "question" ? text : `${text}: ${wish(request.toolName)}`);
  }
}

function tooLate({ status, message, problem }) {
  if (status !== 409 || !problem.decision) return message;
  const line = decisionLine({ decision: problem.decision, decidedBy: problem.decided_by });
  const at = problem.decided_at ? ` at ${timeOfDay(problem.decided_at)}` : "";
  return `Too late: somebody was first. ${line}${at}.`;
}
