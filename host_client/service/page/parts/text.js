// Text of an agent: hidden characters made visible, long text cut, and a little Markdown.

import { bytes } from "../model/format.js";
import { cutAt, pieces } from "../model/safe.js";
import { h } from "./dom.js";

const NAMES = {
  0x1b: "escape", 0x0d: "carriage return", 0x200b: "zero width space", 0x200d: "zero width joiner", 0x202e: "right-to-left override",
  0x202d: "left-to-right override", 0x202a: "left-to-right embedding", 0x202b: "right-to-left embedding", 0x2066: "left-to-right isolate",
  0x2067: "right-to-left isolate", 0x2069: "pop directional isolate", 0xfeff: "byte order mark", 0xa0: "no-break space",
};

/** Return a text as nodes, each hidden character as a marked token. */
export function shown(text) {
  return pieces(String(text)).map((piece) => {
    if (piece.token === undefined) return document.createTextNode(piece.text);
    const number = `U+${piece.code.toString(16).toUpperCase().padStart(4, "0")}`;
    return h("span.hidden-char", { title: `${NAMES[piece.code] ?? "hidden character"} (${number})` }, piece.token);
  });
}

const FIRST_CHARACTERS = 4000;
const FIRST_LINES = 40;
const CHUNK = 50_000;

/** Return a text in fixed width, of which a part is shown, and more on request. */
export function longText(text, { className = "output", first = FIRST_CHARACTERS, lines = FIRST_LINES } = {}) {
  const pre = h(`pre.${className}`, { tabindex: "0" });
  const more = h("button.link", { type: "button", onclick: () => show(Math.max(CHUNK, first)) });
  const box = h("div.long", {}, pre, more);
  let end = 0;
  const show = (count) => {
    const next = cutAt(text, end + count);
    pre.append(...shown(text.slice(end, next)));
    end = next;
    more.hidden = end >= text.length;
    more.textContent = `Show more (${bytes(text.length - end)} left)`;
  };
  show(Math.min(first, lineEnd(text, lines)));
  return box;
}

function lineEnd(text, lines) {
  let at = -1;
  for (let line = 0; line < lines; line += 1) {
    at = text.indexOf("\n", at + 1);
    if (at < 0) return text.length;
  }
  return text.length - at < 400 ? text.length : at;
}

/** Return the model's text with paragraphs, code, headings, lists and bold; no links, pictures or HTML. */
export function prose(text) {
  const box = h("div.prose");
  const parts = text.split(/^(```[^\n]*\n[\s\S]*?(?:^```[^\S\n]*$|$(?![\s\S])))/m);
  parts.forEach((part, index) => {
    if (index % 2) {
      const code = part.replace(/^```[^\n]*\n/, "").replace(/\n?```[^\S\n]*$/, "");
      box.append(longText(code, { className: "code" }));
    } else {
      box.append(...blocks(part));
    }
  });
  return box;
}

function blocks(text) {
  const result = [];
  for (const block of text.split(/\n{2,}/)) {
    const lines = block.split("\n").filter((line, at, all) => line.trim() || (at > 0 && at < all.length - 1));
    let plain = [];
    const flush = () => {
      if (plain.length) result.push(h("p", { dir: "auto" }, plain.flatMap((line, at) => (at ? ["\n", ...inline(line)] : inline(line)))));
      plain = [];
    };
    for (const line of lines) {
      const heading = /^#{1,6}\s+(.*)$/.exec(line);
      const bullet = /^(\s*)(?:[-*+]|(\d{1,3})[.)])\s+(.*)$/.exec(line);
      if (heading) {
        flush();
        result.push(h("p.heading", { dir: "auto" }, inline(heading[1])));
      } else if (bullet) {
        flush();
        result.push(h(bullet[1].length > 1 ? "p.bullet.deep" : "p.bullet", { dir: "auto", "data-mark": bullet[2] ? `${bullet[2]}.` : "•" }, inline(bullet[3])));
      } else {
        plain.push(line);
      }
    }
    flush();
  }
  return result;
}

function inline(line) {
  return line.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).flatMap((part, at) => {
    if (at % 2 === 0) return shown(part);
    return part.startsWith("`") ? h("code", {}, shown(part.slice(1, -1))) : h("strong", {}, shown(part.slice(2, -2)));
  });
}
