// The files of a message that is being written: chosen, pasted or dropped, uploaded at once, and shown until it is sent.

import { api } from "../api.js";
import { faultOfSize, faultOfText, IMAGES, mediaType, UNKNOWN_KIND } from "../model/attachments.js";
import { bytes } from "../model/format.js";
import { announce } from "../parts/announce.js";
import { h, setText } from "../parts/dom.js";
import { shown } from "../parts/text.js";

const LONGEST_NAME = 200;

/** The files of one form: `button` opens the browser's choice of files, `list` shows those that were added. */
export class AttachmentList {
  /** `form` takes pasted and dropped files; `onChange()` is called when a file is added or removed. */
  constructor(form, onChange) {
    this.onChange = onChange;
    this.files = [];
    this.locked = false;
    this.list = h("ul.attachments", { "aria-label": "Attached files", hidden: true });
    const input = h("input", { type: "file", multiple: true, hidden: true, "aria-label": "Files to attach" });
    input.addEventListener("change", () => {
      this.add([...input.files]);
      input.value = ""; // the same file can be chosen again
    });
    this.button = h("span", {}, input, h("button.quiet.attach", { type: "button", onclick: () => input.click() }, "Attach"));
    // What is copied in a spreadsheet or a text editor may be there as a picture too: its text is meant.
    form.addEventListener("paste", (event) => event.clipboardData.types.includes("text/plain") || this.receive(event, event.clipboardData));
    form.addEventListener("drop", (event) => this.receive(event, event.dataTransfer));
    for (const kind of ["dragover", "dragleave", "drop"]) {
      form.addEventListener(kind, (event) => form.classList.toggle("dropping", kind === "dragover" && event.dataTransfer.types.includes("Files")));
    }
  }

  /** Return whether there is any file, also one that cannot be sent. */
  get isEmpty() {
    return this.files.length === 0;
  }

  /** Wait for the uploads; return the attachments of a request, null if a file could not be uploaded. */
  async ready() {
    await Promise.all(this.files.map((each) => each.work));
    return this.files.every((each) => each.id !== null) ? this.files.map((each) => ({ file_id: each.id })) : null;
  }

  /** Let no file be added or removed while a message is sent. */
  set isLocked(locked) {
    this.locked = locked;
    for (const button of [this.button.lastChild, ...this.files.map((each) => each.removal)]) button.disabled = locked;
  }

  clear() {
    this.files = [];
    this.list.replaceChildren();
    this.changed();
  }

  receive(event, transfer) {
    if (!transfer?.files.length) return; // text
    event.preventDefault();
    this.add([...transfer.files]);
  }

  add(files) {
    if (this.locked) return;
    for (const file of files) {
      const entry = new AttachedFile(file, (gone) => this.remove(gone), () => this.files.filter((each) => each !== entry && each.fault === null));
      entry.begin();
      this.files.push(entry);
      this.list.append(entry.node);
    }
    this.changed();
  }

  remove(entry) {
    const at = this.files.indexOf(entry);
    this.files.splice(at, 1);
    entry.node.remove();
    this.changed();
    const next = this.files[Math.min(at, this.files.length - 1)];
    (next ? next.removal : this.button.lastChild).focus();
  }

  changed() {
    this.list.hidden = this.isEmpty;
    this.onChange();
  }
}

/** One file: its preview, and the state of its upload. `fault` is why it cannot be sent, null if it can. */
class AttachedFile {
  /** `others()` are the other files that can be sent. */
  constructor(file, onRemove, others) {
    this.file = file;
    this.others = others;
    this.kind = null;
    this.name = (file.name || "file").slice(0, LONGEST_NAME);
    this.id = null;
    this.fault = null;
    this.preview = h("span.attachment-kind", { "aria-hidden": "true" }, "…");
    this.state = h("span.attachment-state", {}, bytes(file.size));
    this.progress = h("progress", { "aria-label": `Uploading ${this.name}` });
    this.again = h("button.link", { type: "button", hidden: true, onclick: () => this.begin() }, "Try again");
    this.removal = h("button.icon", { type: "button", "aria-label": `Remove ${this.name}`, onclick: () => onRemove(this) }, "✕");
    this.node = h("li.attachment", {}, this.preview, h("span.attachment-about", {}, h("span.attachment-name", {}, shown(this.name)), this.state, this.again, this.progress), this.removal);
  }

  /** Upload the file unless it has a fault already; `work` ends when it is uploaded or has one. */
  begin() {
    const fault = faultOfSize(this.file.size, this.others().map((each) => each.file.size));
    this.work = fault === null ? this.upload() : this.fail(fault);
  }

  async upload() {
    this.fault = null;
    this.again.hidden = true;
    this.progress.hidden = false;
    this.node.classList.remove("problem");
    setText(this.state, bytes(this.file.size));
    try {
      const content = new Uint8Array(await this.file.arrayBuffer());
      this.kind = mediaType(content);
      if (this.kind === null) return this.fail(UNKNOWN_KIND);
      const texts = this.others().filter((each) => each.kind === "text/plain");
      const fault = this.kind === "text/plain" ? faultOfText(content.length, texts.map((each) => each.file.size)) : null;
      if (fault !== null) return this.fail(fault);
      await this.show(new Blob([content], { type: this.kind }));
      this.id = (await api.upload(content, this.name)).file_id;
    } catch (problem) {
      return this.fail(problem.message, { mayPass: true });
    }
    this.progress.hidden = true;
    announce(`${this.name} is attached`);
  }

  async fail(fault, { mayPass = false } = {}) {
    this.fault = fault;
    this.progress.hidden = true;
    this.again.hidden = !mayPass;
    if (!mayPass) setText(this.preview, "?");
    this.node.classList.add("problem");
    setText(this.state, fault);
    announce(`${this.name}: ${fault}`);
  }

  async show(blob) {
    if (!IMAGES.includes(blob.type)) return setText(this.preview, blob.type === "application/pdf" ? "PDF" : "TXT");
    const picture = h("img.thumbnail", { alt: "", src: await dataUrl(blob) });
    setText(this.preview, "IMG"); // of a picture that the browser cannot show
    picture.addEventListener("load", () => this.preview.replaceChildren(picture));
  }
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** Return the attachments of a prompt in the transcript: pictures, and the names of other files, as links to them. */
export function attachmentLinks(sessionId, attachments) {
  return h("ul.attachments", { "aria-label": "Attached files" }, attachments.map((each) => {
    const url = api.attachmentUrl(sessionId, each.id);
    const name = each.name ?? "attachment";
    const label = h("span.attachment-about", {}, h("span.attachment-name", {}, shown(name)), h("span.attachment-state", {}, bytes(each.size)));
    const link = h("a.attachment", { href: url, download: name }, label);
    if (IMAGES.includes(each.media_type)) {
      const picture = h("img.thumbnail", { src: url, alt: "", loading: "lazy" });
      picture.addEventListener("error", () => picture.remove()); // it is no longer kept, or broken
      link.prepend(picture);
    }
    return h("li", {}, link);
  }));
}
