// Diffs by lines, also of the input of an editing tool. Pure.

const MOST_CELLS = 1_000_000;

/** Return the diff of two texts as rows {kind: " " | "-" | "+", text}. */
export function diffLines(before, after) {
  const [a, b] = [lines(before), lines(after)];
  // The empty line after a final newline counts only if just one text ends with a newline.
  if ([a, b].every((each) => !each.length || each.at(-1) === "")) [a, b].forEach((each) => each.pop());
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail += 1;
  const same = (text) => ({ kind: " ", text });
  return [
    ...a.slice(0, head).map(same),
    ...middle(a.slice(head, a.length - tail), b.slice(head, b.length - tail)),
    ...a.slice(a.length - tail).map(same),
  ];
}

function lines(text) {
  return text === "" ? [] : text.split("\n");
}

function middle(a, b) {
  const removed = (text) => ({ kind: "-", text });
  const added = (text) => ({ kind: "+", text });
  if (a.length * b.length > MOST_CELLS) return [...a.map(removed), ...b.map(added)];
  const width = b.length + 1;
  const longest = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      const at = i * width + j;
      longest[at] = a[i] === b[j] ? longest[at + width + 1] + 1 : Math.max(longest[at + width], longest[at + 1]);
    }
  }
  const rows = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      rows.push({ kind: " ", text: a[i] });
      i += 1;
      j += 1;
    } else if (j >= b.length || (i < a.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) {
      rows.push(removed(a[i++]));
    } else {
      rows.push(added(b[j++]));
    }
  }
  return rows;
}

/** Replace long runs of unchanged rows by {kind: "…", count}. */
export function folded(rows, context = 3) {
  const shown = [];
  for (let i = 0; i < rows.length; ) {
    let end = i;
    while (end < rows.length && rows[end].kind === " ") end += 1;
    const run = end - i;
    const before = i === 0 ? 0 : context;
    const after = end === rows.length ? 0 : context;
    if (run > before + after + 1) {
      shown.push(...rows.slice(i, i + before), { kind: "…", count: run - before - after }, ...rows.slice(end - after, end));
    } else {
      shown.push(...rows.slice(i, end));
    }
    i = end;
    while (i < rows.length && rows[i].kind !== " ") shown.push(rows[i++]);
  }
  return shown;
}

const isText = (...values) => values.every((value) => typeof value === "string");

/**
 * Return the edit of an editing tool: {path, hunks: [{rows, note}], used: [names of the input's fields shown]}. Null
 * for any other tool, and for an input in an unknown form, which is then shown as JSON.
 */
export function editOf(name, input) {
  if (name === "Edit" && isText(input.file_path, input.old_string, input.new_string)) {
    const note = input.replace_all === true ? "every occurrence" : null;
    const used = ["file_path", "old_string", "new_string"];
    if (typeof input.replace_all === "boolean") used.push("replace_all");
    return { path: input.file_path, hunks: [{ rows: diffLines(input.old_string, input.new_string), note }], used };
  }
  if (name === "Write" && isText(input.file_path, input.content)) {
    const rows = diffLines("", input.content);
    return { path: input.file_path, hunks: [{ rows, note: "the whole file" }], used: ["file_path", "content"] };
  }
  if (name === "MultiEdit" && isText(input.file_path) && Array.isArray(input.edits) && input.edits.every(isPlainEdit)) {
    const hunks = input.edits.map((edit, at) => ({
      rows: diffLines(edit.old_string, edit.new_string),
      note: `change ${at + 1} of ${input.edits.length}${edit.replace_all === true ? ", every occurrence" : ""}`,
    }));
    return { path: input.file_path, hunks, used: ["file_path", "edits"] };
  }
  return null;
}

function isPlainEdit(edit) {
  if (edit === null || typeof edit !== "object") return false;
  const known = ["old_string", "new_string", "replace_all"];
  return isText(edit.old_string, edit.new_string) && Object.keys(edit).every((key) => known.includes(key));
}

/** Return the number of added and removed lines of all hunks. */
export function countChanges(hunks) {
  const rows = hunks.flatMap((hunk) => hunk.rows);
  return { added: rows.filter((r) => r.kind === "+").length, removed: rows.filter((r) => r.kind === "-").length };
}
