// What a prompt may have with it, by the rules of the service. Pure.

import { bytes } from "./format.js";

export const MAX_BYTES = 10 * 1024 * 1024; // of all attachments of a prompt
export const MAX_TEXT_BYTES = 512 * 1024; // of all texts among them
export const MAX_ATTACHMENTS = 20;
export const IMAGES = ["image/png", "image/jpeg", "image/gif", "image/webp"];

const BEGINNINGS = [["\x89PNG\r\n\x1a\n", "image/png"], ["\xff\xd8\xff", "image/jpeg"], ["GIF87a", "image/gif"], ["GIF89a", "image/gif"], ["%PDF-", "application/pdf"]];

/** Return the media type of a file's content (a Uint8Array); null if no prompt can have it. */
export function mediaType(content) {
  const start = String.fromCharCode(...content.subarray(0, 12));
  const known = BEGINNINGS.find(([beginning]) => start.startsWith(beginning));
  if (known) return known[1];
  if (start.startsWith("RIFF") && start.slice(8) === "WEBP") return "image/webp";
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(content).includes("\0") ? null : "text/plain";
  } catch {
    return null;
  }
}

/** Return why a file of this size cannot be added to files of these sizes; null if it can. */
export function faultOfSize(size, others) {
  if (size === 0) return "It is empty.";
  if (others.length >= MAX_ATTACHMENTS) return `A message takes at most ${MAX_ATTACHMENTS} files.`;
  const total = others.reduce((sum, each) => sum + each, size);
  return total > MAX_BYTES ? `The files of a message may have ${bytes(MAX_BYTES)} together.` : null;
}

/** Return why a text of this size cannot be added to texts of these sizes; null if it can. */
export function faultOfText(size, others) {
  const total = others.reduce((sum, each) => sum + each, size);
  return total > MAX_TEXT_BYTES ? `The texts of a message may have ${bytes(MAX_TEXT_BYTES)} together.` : null;
}

export const UNKNOWN_KIND = "It is no PNG, JPEG, GIF, WebP, PDF or UTF-8 text.";
