// A growing text shown as Markdown: the server renders it, a part at a time while it grows, whole at its end.

import { markup } from "./api.js";
import { copyButton, element } from "./elements.js";

const LEAST_WAIT_MS = 300;
// Rendering takes at most this share of the server's time.
const SHARE = 0.1;

export class LiveMarkup {
  constructor(container) {
    this.settled = element("div");
    this.open = element("div");
    container.replaceChildren(this.settled, this.open);
    this.lines = 0;
    this.text = "";
    this.working = false;
    this.changed = false;
    this.ended = false;
  }

  /** Shows more of the text, soon. */
  grow(text) {
    this.text = text.replace(/\r\n?/g, "\n");
    this.changed = true;
    if (!this.working) this.#work();
  }

  /** Shows the whole text, once. */
  async end(text) {
    this.ended = true;
    try {
      this.settled.replaceChildren(...nodesOf((await markup(text)).html));
      this.open.replaceChildren();
    } catch {
      // What is rendered stays; of the rest nobody knows how it would look.
      this.open.replaceChildren(plain(this.#rest(text.replace(/\r\n?/g, "\n"))));
    }
  }

  #rest(text) {
    return text.split("\n").slice(this.lines).join("\n");
  }

  async #work() {
    this.working = true;
    while (this.changed && !this.ended) {
      this.changed = false;
      const began = performance.now();
      const rest = this.#rest(this.text);
      try {
        const rendered = await markup(rest);
        if (this.ended) break;
        this.settled.append(...nodesOf(rendered.settled_html));
        this.open.replaceChildren(...nodesOf(rendered.open_html));
        this.lines += rendered.settled_lines;
      } catch {
        if (this.ended) break;
        this.open.replaceChildren(plain(rest));
      }
      const tookMs = performance.now() - began;
      await new Promise((resolve) => setTimeout(resolve, Math.max(LEAST_WAIT_MS, tookMs / SHARE)));
    }
    this.working = false;
  }
}

/** Shows a text that is complete. Where the server cannot render it, it is shown as it stands. */
export async function show(text, container) {
  try {
    container.replaceChildren(...nodesOf((await markup(text)).html));
  } catch {
    container.replaceChildren(plain(text));
  }
}

const plain = (text) => element("div", { className: "plain", textContent: text });

function nodesOf(html) {
  // The one place where HTML comes in: the server's, which lets no other through (r1mac/server/markup.py).
  const parsed = element("template");
  parsed.innerHTML = html;
  for (const code of parsed.content.querySelectorAll("div.code")) {
    const copy = copyButton(() => code.querySelector("code").textContent);
    copy.className = "quiet copy";
    copy.setAttribute("aria-label", "Copy the code");
    code.append(copy);
  }
  return parsed.content.childNodes;
}
