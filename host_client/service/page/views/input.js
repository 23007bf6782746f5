// A tool's exact input: a command, a diff, or JSON; fields that this form does not show follow below.

import { editOf } from "../model/diff.js";
import { h } from "../parts/dom.js";
import { longText, shown } from "../parts/text.js";
import { diffView } from "./diff.js";

const MAIN_FIELD = { Bash: "command", Agent: "prompt", Task: "prompt" };
const WHOLE = { className: "exact", first: 20_000, lines: 400 };

/** Return a tool's whole input; nothing is left out, as a person may approve it. */
export function inputView(name, input) {
  const edit = editOf(name, input);
  if (edit) return [diffView(edit), fieldsView(input, edit.used)];
  const main = Object.hasOwn(MAIN_FIELD, name) ? MAIN_FIELD[name] : null;
  if (typeof input[main] === "string") return [longText(input[main], WHOLE), fieldsView(input, [main])];
  return [longText(JSON.stringify(input, null, 2), WHOLE)];
}

function fieldsView(input, used) {
  const rest = Object.entries(input).filter(([key]) => !used.includes(key));
  if (!rest.length) return null;
  return h(
    "dl.fields",
    {},
    rest.map(([key, value]) => [
      h("dt", {}, shown(key)),
      h("dd", {}, typeof value === "string" ? longText(value, { className: "value" }) : longText(JSON.stringify(value), { className: "value" })),
    ]),
  );
}
