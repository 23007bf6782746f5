// One timer for all ages, countdowns and elapsed times on the page.

const listeners = new Set();
let timer = null;

/** Call `listener` now and twice a second until the returned function is called. */
export function everyTick(listener) {
  listeners.add(listener);
  timer ??= setInterval(() => listeners.forEach((each) => each()), 500);
  listener();
  return () => {
    listeners.delete(listener);
    if (!listeners.size) {
      clearInterval(timer);
      timer = null;
    }
  };
}
