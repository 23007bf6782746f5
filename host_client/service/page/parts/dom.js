// Create elements without markup: an agent's text becomes text nodes and attributes, never HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Create an element: h("button.primary", {onclick, disabled: true}, "Send"). Strings become text nodes; null is skipped. */
export function h(spec, props = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  return filled(document.createElement(tag), classes, props, children);
}

/** Create an SVG element in the same way. */
export function svg(spec, props = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  return filled(document.createElementNS(SVG, tag), classes, props, children);
}

function filled(node, classes, props, children) {
  if (classes.length) node.classList.add(...classes);
  for (const [name, value] of Object.entries(props)) set(node, name, value);
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Set one property: a listener (onclick), a live value, a flag or an attribute; null removes it. */
export function set(node, name, value) {
  if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
  else if (name === "value" || name === "checked" || name === "hidden") node[name] = value;
  else if (typeof value === "boolean" && !name.startsWith("aria-")) node.toggleAttribute(name, value);
  else if (value === null || value === undefined) node.removeAttribute(name);
  else node.setAttribute(name, String(value));
}

/** Set a text only if it differs, to avoid a needless layout. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Return whether an element takes typed text, so that single keys are letters and not shortcuts. */
export function isTyping(target) {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}

/** Wrap a function to run at most once in so many milliseconds: at once, and again for calls meanwhile. */
export function throttled(work, ms) {
  let timer = null;
  let isDue = false;
  const over = () => {
    timer = isDue ? setTimeout(over, ms) : null;
    if (isDue) work();
    isDue = false;
  };
  return () => {
    isDue = true;
    if (timer === null) over();
  };
}

/** Wrap a function to run once in the next frame, however often it is called. */
export function oncePerFrame(work) {
  let asked = 0;
  return () => {
    if (asked) return;
    asked = requestAnimationFrame(() => {
      asked = 0;
      work();
    });
  };
}
