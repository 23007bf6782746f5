// Make characters visible that could deceive a person: control, bidirectional and invisible ones. Pure.

// C0 (but tab and newline), DEL and C1; soft hyphen, joiners, fillers, zero-width and bidirectional marks, separators,
// look-alike spaces, tags, variation selectors and lone surrogates. A joiner or an emoji selector inside an emoji stays.
const HIDDEN = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u00a0\\u00ad\\u034f\\u061c\\u115f\\u1160\\u1680\\u17b4\\u17b5\\u180b-\\u180f" +
    "\\u2000-\\u200c\\u200e\\u200f\\u2028-\\u202f\\u205f-\\u206f\\u2800\\u3000\\u3164\\ufe00-\\ufe0e\\ufeff\\uffa0\\ufff9-\\ufffb" +
    "\\u{e0000}-\\u{e0fff}\\ud800-\\udfff]" +
    "|(?<![\\p{Extended_Pictographic}\\ufe0f\\u{1f3fb}-\\u{1f3ff}])\\u200d|\\u200d(?!\\p{Extended_Pictographic})" +
    "|(?<![\\p{Extended_Pictographic}#*0-9])\\ufe0f",
  "gu",
);

const CONTROLS = "NUL SOH STX ETX EOT ENQ ACK BEL BS TAB LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US".split(" ");

/** Return the visible form of a hidden character: its name (⟨ESC⟩) or number (⟨U+202E⟩). Fonts often lack ␛. */
export function tokenOf(character) {
  const code = character.codePointAt(0);
  const name = CONTROLS[code] ?? (code === 0x7f ? "DEL" : `U+${code.toString(16).toUpperCase().padStart(4, "0")}`);
  return `\u27e8${name}\u27e9`;
}

/** Split a text into pieces [{text}, {token, code}, …]; each token is the visible form of one hidden character. */
export function pieces(text) {
  const found = [];
  let from = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if (match.index > from) found.push({ text: text.slice(from, match.index) });
    found.push({ token: tokenOf(match[0]), code: match[0].codePointAt(0) });
    from = match.index + match[0].length;
  }
  if (from < text.length) found.push({ text: text.slice(from) });
  return found;
}

/** Return the text with every hidden character in its visible form. */
export function revealed(text) {
  return String(text).replace(HIDDEN, tokenOf);
}

/** Return whether the text has hidden characters. */
export function hasHidden(text) {
  return text.search(HIDDEN) >= 0;
}

/** Return a text as one line of at most so many characters, with hidden characters made visible. */
export function oneLine(text, limit = 160) {
  const head = String(text).slice(0, limit * 2).replace(/\s*\n\s*/g, " \u21b5 ").replace(/\t/g, " ");
  const shown = revealed(head);
  return shown.length > limit || String(text).length > limit * 2 ? `${shown.slice(0, limit - 1)}…` : shown;
}

/** Return where to cut a text at most `limit` characters in, without splitting a surrogate pair. */
export function cutAt(text, limit) {
  if (limit >= text.length) return text.length;
  const code = text.charCodeAt(limit - 1);
  return code >= 0xd800 && code <= 0xdbff ? limit - 1 : limit;
}
