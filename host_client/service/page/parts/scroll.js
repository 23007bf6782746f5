// Boxes that scroll, with a hint that there is more below, as a phone shows no scroll bar.

import { h } from "./dom.js";

const SLACK = 4; // pixels of rounding error

/** Call `onChange(isMore)` when a box begins or ceases to have more content beyond its end; returns a stop function. */
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

/** Return a box that scrolls {node, stop}, with a button over its lower edge while there is more below. */
export function cuedBox(...content) {
  const box = h("div.card-body", {}, content);
  const onclick = () => box.scrollBy({ top: box.clientHeight * 0.8 });
  const cue = h("button.more-below", { type: "button", tabindex: "-1", hidden: true, onclick }, "More below ↓");
  const stop = watchEnd(box, (isMore) => (cue.hidden = !isMore));
  return { node: h("div.cued", {}, box, cue), stop };
}
