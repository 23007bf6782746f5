// A diff as rows with signs; long unchanged runs are folded, and a long diff is shown in parts.

import { countChanges, folded } from "../model/diff.js";
import { plural } from "../model/format.js";
import { cutAt } from "../model/safe.js";
import { h } from "../parts/dom.js";
import { shown } from "../parts/text.js";

const FIRST_ROWS = 60;
const MORE_ROWS = 500;
const LONGEST_LINE = 2000;

/** Return the diff of an edit from `editOf`: a heading with the path, and a block for each hunk. */
export function diffView({ path, hunks }) {
  const { added, removed } = countChanges(hunks);
  return h(
    "div.diff",
    {},
    h("div.diff-head", {}, h("span.path", {}, shown(path)), h("span.added", {}, `+${added}`), h("span.removed", {}, `−${removed}`)),
    hunks.map((hunk) => [hunk.note ? h("div.diff-note", {}, hunk.note) : null, rowsView(folded(hunk.rows))]),
  );
}

function rowsView(rows) {
  const body = h("div.diff-rows", { tabindex: "0", role: "group", "aria-label": "Changed lines" });
  const more = h("button.link", { type: "button", onclick: () => show(MORE_ROWS) });
  let end = 0;
  const show = (count) => {
    body.append(...rows.slice(end, end + count).map(rowView));
    end = Math.min(rows.length, end + count);
    more.hidden = end >= rows.length;
    more.textContent = `Show more (${plural(rows.length - end, "line")} left)`;
  };
  show(FIRST_ROWS);
  return [body, more];
}

const NAMES = { "+": "added", "-": "removed", " ": "same" };

function rowView(row) {
  if (row.kind === "…") return h("div.row.skip", {}, `⋯ ${plural(row.count, "unchanged line")}`);
  const sign = row.kind === "-" ? "−" : row.kind;
  const line = h("span.line", {}, shown(row.text.slice(0, cutAt(row.text, LONGEST_LINE))));
  if (row.text.length > LONGEST_LINE) line.append(rest(row.text));
  return h(`div.row.${NAMES[row.kind]}`, {}, h("span.sign", { "aria-label": NAMES[row.kind] }, sign), line);
}

function rest(text) {
  const from = cutAt(text, LONGEST_LINE);
  const button = h("button.link", { type: "button" }, ` … ${text.length - from} more characters`);
  button.addEventListener("click", () => button.replaceWith(...shown(text.slice(from))));
  return button;
}
