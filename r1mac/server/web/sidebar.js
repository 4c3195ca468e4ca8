// The list of conversations, and what can be done with one.

import { asJson, asMarkdown, fileName } from "./conversation.js";
import { ask, button, byId, element } from "./elements.js";

export class Sidebar {
  constructor({ onOpen, onRename, onDelete }) {
    Object.assign(this, { onOpen, onRename, onDelete });
    byId("sidebar-open").onclick = () => this.#slide(true);
    byId("sidebar-close").onclick = () => this.#slide(false);
    byId("shade").onclick = () => this.#slide(false);
    byId("sidebar").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !byId("sidebar").classList.contains("open")) return;
      event.stopPropagation(); // it would stop the reply
      this.#slide(false);
    });
    document.addEventListener("click", (event) => {
      for (const menu of document.querySelectorAll("details.menu[open]")) {
        if (!menu.contains(event.target)) menu.open = false;
      }
    });
  }

  show(conversations, currentId, runningId) {
    byId("conversations").replaceChildren(
      ...conversations.map((conversation) => this.#row(conversation, conversation.id === currentId, conversation.id === runningId)),
    );
  }

  close() {
    this.#slide(false);
  }

  #row(conversation, current, running) {
    const name = button(conversation.title, () => { this.onOpen(conversation); this.#slide(false); }, { className: "name", title: conversation.title });
    if (current) name.setAttribute("aria-current", "true");
    return element("li", { className: `${current ? "current" : ""} ${running ? "running" : ""}` }, name, this.#menu(conversation));
  }

  #menu(conversation) {
    const item = (text, act) => button(text, () => { menu.open = false; act(); });
    const menu = element(
      "details", { className: "menu" },
      element("summary", { textContent: "⋯", aria: { label: `What to do with «${conversation.title}»` } }),
      element(
        "div", {},
        item("Rename …", () => this.#rename(conversation)),
        item("Export as Markdown", () => save(fileName(conversation, "md"), asMarkdown(conversation), "text/markdown")),
        item("Export as JSON", () => save(fileName(conversation, "json"), asJson(conversation), "application/json")),
        item("Delete …", () => this.#delete(conversation)),
      ),
    );
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !menu.open) return;
      event.stopPropagation();
      menu.open = false;
      menu.querySelector("summary").focus();
    });
    return menu;
  }

  async #rename(conversation) {
    const title = await ask({ title: "Rename", value: conversation.title });
    if (title?.trim()) this.onRename(conversation, title.trim());
  }

  async #delete(conversation) {
    const yes = await ask({ title: "Delete this conversation?", text: `«${conversation.title}» is kept in this browser only; it cannot be brought back.`, yes: "Delete" });
    if (yes !== null) this.onDelete(conversation);
  }

  #slide(open) {
    const sidebar = byId("sidebar");
    if (sidebar.classList.contains("open") === open) return;
    sidebar.classList.toggle("open", open);
    byId("shade").hidden = !open;
    byId("sidebar-open").setAttribute("aria-expanded", String(open));
    (open ? byId("new-chat") : byId("sidebar-open")).focus();
  }
}

function save(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = element("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
