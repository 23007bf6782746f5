// Boxes that scroll, and say so: on a phone no bar tells that something lies below.

import { h } from "./dom.js";

const SLACK = 4; // pixels that rounding may leave

/** Call `onChange(isMore)` as something comes to lie beyond the end of a box, or no more; returns what stops it. */
export function watchEnd(box, onChange) {
  const look = () => {
    const below = box.scrollHeight - box.scrollTop - box.clientHeight;
    const beside = box.scrollWidth - box.scrollLeft - box.clientWidth;
    onChange(Math.max(below, beside) > SLACK);
  };
  box.addEventListener("scroll", look, { passive: true });
  const size = new ResizeObserver(look);
  for (const each of [box, ...box.children]) size.observe(each);
  return () => size.disconnect();
}

/** A box that scrolls, with a button over its lower edge while something lies below: {node, stop}. */
export function cuedBox(...content) {
  const box = h("div.card-body", {}, content);
  const onclick = () => box.scrollBy({ top: box.clientHeight * 0.8 });
  const cue = h("button.more-below", { type: "button", tabindex: "-1", hidden: true, onclick }, "More below ↓");
  const stop = watchEnd(box, (isMore) => (cue.hidden = !isMore));
  return { node: h("div.cued", {}, box, cue), stop };
}
