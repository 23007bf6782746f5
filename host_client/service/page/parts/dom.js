// Elements without markup: what comes from an agent becomes text nodes and attributes, never HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element: h("button.primary", {onclick, disabled: true}, "Send"). Strings become text nodes; null is left out. */
export function h(spec, props = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  return filled(document.createElement(tag), classes, props, children);
}

/** An SVG element, likewise. */
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

/** Set a text only where it differs, so that nothing is laid out again for nothing. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Whether the person is writing: single keys are then letters, not commands. */
export function isTyping(target) {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}

/** A work that runs at most once in so many milliseconds: at once, and once more for what was asked meanwhile. */
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

/** A work that runs once in the next frame however often it was asked for. */
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
