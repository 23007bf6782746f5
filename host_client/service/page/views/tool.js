// A tool call in the transcript: one line, with all details when unfolded.

import { wasRefused } from "../model/figures.js";
import { bytes, duration, plural } from "../model/format.js";
import { oneLine } from "../model/safe.js";
import { contentText, decisionLine, saidWith, toolLine } from "../model/words.js";
import { h, setText, svg } from "../parts/dom.js";
import { longText, shown } from "../parts/text.js";
import { inputView } from "./input.js";

let count = 0;

/** Return a button that unfolds the content that `build` creates on first use. */
export function fold(line, build, label) {
  const id = `fold-${(count += 1)}`;
  const body = h("div.fold-body", { id, hidden: true });
  const button = h("button.fold-line", { type: "button", "aria-expanded": "false", "aria-controls": id, "aria-label": label ?? null }, chevron(), line);
  const state = { isOpen: false, isBuilt: false };
  const open = (isOpen) => {
    if (isOpen && !state.isBuilt) {
      state.isBuilt = true;
      body.append(...[build()].flat(Infinity).filter(Boolean));
    }
    state.isOpen = isOpen;
    body.hidden = !isOpen;
    button.setAttribute("aria-expanded", String(isOpen));
  };
  button.addEventListener("click", () => open(!state.isOpen));
  const rebuild = () => {
    if (!state.isBuilt) return;
    body.replaceChildren(...[build()].flat(Infinity).filter(Boolean));
  };
  return { nodes: [button, body], open, rebuild, button };
}

export function chevron() {
  return svg("svg.chevron", { viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" }, svg("path", { d: "M6 4l4 4-4 4", fill: "none", stroke: "currentColor", "stroke-width": 1.6 }));
}

/** Return the state of a call: waiting, running, done, failed, refused or cut. */
export function stateOf(item) {
  if (item.request && item.request.resolved === null && !item.isCut && !item.result) return "waiting";
  if (wasRefused(item)) return "refused";
  if (item.result) return item.result.isError ? "failed" : "done";
  return item.isCut ? "cut" : "running";
}

const CHIPS = { waiting: "Needs you", refused: "Refused", failed: "Failed", cut: "Cut off" };
const TASK_CHIPS = { running: "In the background", completed: "Ended in the background", failed: "Failed in the background", stopped: "Stopped in the background" };

/** The card of a call: {node, update, open, nested}; `nested` is the list of a subagent's own items. */
export class ToolCard {
  constructor(item, me) {
    this.me = me;
    this.item = item;
    this.verb = h("span.verb");
    this.object = h("span.object");
    this.chip = h("span.chip", { hidden: true });
    this.calls = h("span.calls", { hidden: true });
    this.time = h("span.time");
    this.nested = h("ol.items.nested", { "aria-label": "What the subagent did" });
    this.nestedCount = 0;
    this.fold = fold([h("span.dot", { "aria-hidden": "true" }), h("span.what", {}, this.verb, " ", this.object), this.calls, this.chip, this.time], () => this.body());
    this.hint = h("p.failure", { hidden: true });
    this.verdict = h("p.verdict", { hidden: true });
    this.node = h("div.tool", {}, this.fold.nodes[0], this.hint, this.verdict, this.fold.nodes[1]);
    this.update(item);
  }

  open(isOpen = true) {
    this.fold.open(isOpen);
  }

  update(item) {
    this.item = item;
    const state = stateOf(item);
    this.node.dataset.state = state;
    const line = toolLine(item.name, item.input, state === "running" ? "running" : state === "waiting" || state === "refused" ? "wants" : "done");
    setText(this.verb, { waiting: `Wants to ${line.verb}`, refused: `Did not ${line.verb}` }[state] ?? line.verb);
    setText(this.object, oneLine(line.object, 200));
    const chip = CHIPS[state] ?? TASK_CHIPS[item.task] ?? "";
    setText(this.chip, chip);
    this.chip.hidden = !chip;
    setText(this.time, item.result && state !== "refused" ? duration(item.result.durationMs) : "");
    this.updateNotes(item, state);
    this.fold.rebuild();
  }

  updateNotes(item, state) {
    const failure = state === "failed" ? oneLine(lastLine(contentText(item.result.content)), 200) : "";
    this.hint.hidden = !failure;
    setText(this.hint, failure);
    const resolved = item.request?.resolved;
    this.verdict.hidden = !resolved;
    if (!resolved) return;
    const said = oneLine(saidWith(item.request, item.result), 200);
    setText(this.verdict, `${decisionLine(resolved, this.me())}${said ? `: ${said}` : ""} · waited ${duration(resolved.waitMs)}`);
  }

  /** Add an item of this call's subagent. */
  adopt(node) {
    this.nested.append(node);
    this.nestedCount += 1;
    this.calls.hidden = false;
    setText(this.calls, plural(this.nestedCount, "step"));
  }

  body() {
    const { item } = this;
    return [
      item.request?.kind === "question" ? questionsView(item.request) : inputsView(item),
      this.nestedCount || ["Agent", "Task"].includes(item.name) ? [h("h4", {}, "What it did"), this.nested] : null,
      this.output(item),
    ];
  }

  output({ result }) {
    if (!result) return null;
    const text = contentText(result.content);
    const size = result.isTruncated ? `, the first ${bytes(text.length)} of ${bytes(result.bytes)}` : "";
    const type = [result.errorType, result.deniedBy && `denied by ${result.deniedBy}`].filter(Boolean).join(", ");
    return [
      h("h4", {}, `${result.isError ? "Failure" : "Output"}${type && ` (${type})`}${size}`),
      text === "" ? h("p.muted", {}, "Nothing.") : longText(text),
    ];
  }
}

/** Return a call's input; if it ran with another one than Claude wrote, both. */
function inputsView({ name, input, request, result }) {
  const wasEdited = request?.resolved?.decision === "allow_edited";
  const edited = wasEdited ? request.resolved.updatedInput : null;
  const executed = result?.executedInput ?? edited;
  if (executed === null) {
    // An earlier runner does not report the edit.
    return [h("h4", {}, wasEdited ? "Input as Claude wrote it; it was changed before it ran" : "Input"), inputView(name, input)];
  }
  const title = edited === null ? "Input as it ran" : "Input as it ran, changed by a person";
  return [h("h4", {}, title), inputView(name, executed), h("h4", {}, "Input as Claude wrote it"), inputView(name, input)];
}

/** Return the last line of an output, where most tools write what went wrong. */
function lastLine(text) {
  const end = text.slice(-4000).trim();
  return end.slice(end.lastIndexOf("\n") + 1);
}

function questionsView(request) {
  const answers = request.resolved?.answers ?? {};
  return h(
    "dl.answers",
    {},
    request.questions.map(({ question }) => [
      h("dt", {}, shown(String(question))),
      h("dd", {}, Object.hasOwn(answers, question) ? shown(String(answers[question])) : h("span.muted", {}, "No answer")),
    ]),
  );
}
