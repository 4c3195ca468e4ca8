// How a question and a reply look.

import { endingText, thoughtSummary } from "./conversation.js";
import { ask, button, byId, copyButton, element } from "./elements.js";
import { LiveMarkup, show } from "./live_markup.js";
import { plural, rate } from "./numbers.js";

export function questionView(message, { onEdit }) {
  const edit = onEdit ? button("Edit", onEdit, { className: "quiet" }) : null;
  return element(
    "article", { className: "question", aria: { label: "Question" } },
    element("div", { className: "bubble", textContent: message.text }),
    element("div", { className: "row tools" }, copyButton(() => message.text), edit),
  );
}

/** A reply's view. While the reply is written, its runner calls `update`, and `end` at last. */
export class ReplyView {
  constructor(reply, actions) {
    this.reply = reply;
    this.actions = actions;
    this.touched = false;
    this.shownThought = 0;
    this.#build();
    if (reply.end === null) this.update();
    else this.end();
  }

  #build() {
    this.title = element("span", { className: "title" });
    this.facts = element("span", { className: "facts" });
    this.thoughtText = element("div", { className: "thought-text plain", tabIndex: 0, role: "group", aria: { label: "Thought" } });
    const summary = element("summary", {}, this.title, this.facts);
    summary.addEventListener("click", () => { this.touched = true; });
    this.thought = element("details", { className: "thought", hidden: true, ontoggle: () => this.#renderThought() }, summary, this.thoughtText);
    this.steering = this.#steering();
    this.answer = element("div", { className: "text" });
    this.notices = element("ul", { className: "notices", hidden: true });
    this.problem = element("p", { className: "problem", hidden: true });
    this.tools = element("div", { className: "row tools", hidden: true });
    this.element = element(
      "article", { className: "reply", aria: { label: "Reply" } },
      this.thought, this.steering, this.answer, this.notices, this.problem, this.tools,
    );
    this.live = new LiveMarkup(this.answer);
  }

  #steering() {
    const wish = (name, label) => button(label, () => this.actions.steer(name), { className: "quiet" });
    this.answerNow = wish("answer-now", "Answer now");
    this.answerNow.className = "accent";
    this.pause = button("Pause", () => this.actions.steer(this.reply.paused ? "resume" : "pause"), { className: "quiet" });
    this.more = wish("think-more", "Think more");
    this.hint = button("Hint …", () => this.#giveHint(), { className: "quiet" });
    return element("div", { className: "row steering", hidden: true, role: "group", aria: { label: "Steer the thought" } },
      this.answerNow, this.pause, this.more, this.hint);
  }

  async #giveHint() {
    const text = await ask({ title: "A hint for the thought", text: "The model reads it as if it had thought of it.", value: "", yes: "Give it" });
    if (text?.trim()) this.actions.steer("hint", { text: text.trim() });
  }

  update() {
    const { reply } = this;
    const thinking = reply.thought !== "" && reply.answer === "";
    this.#showThought(thinking);
    const focused = this.steering.contains(document.activeElement);
    this.steering.hidden = !reply.id;
    for (const control of [this.answerNow, this.more, this.hint]) control.hidden = reply.answer !== "";
    if (focused && document.activeElement.hidden) this.pause.focus();
    this.pause.textContent = reply.paused ? "Go on" : "Pause";
    this.#showNotices();
    if (reply.answer) this.live.grow(reply.answer);
    this.element.setAttribute("aria-busy", "true");
    this.element.classList.toggle("waiting", !reply.thought && !reply.answer);
  }

  end() {
    const { reply } = this;
    this.element.removeAttribute("aria-busy");
    this.element.classList.remove("waiting");
    if (this.steering.contains(document.activeElement)) byId("question").focus({ preventScroll: true });
    this.steering.hidden = true;
    this.#showThought(false);
    this.#showNotices();
    this.#renderThought();
    this.rendered = reply.answer ? this.live.end(reply.answer) : Promise.resolve();
    const trouble = endingText(reply);
    this.problem.textContent = trouble ?? "";
    this.problem.hidden = !trouble;
    this.problem.classList.toggle("calm", !reply.problem);
    this.#showTools();
    return this.rendered;
  }

  #showTools() {
    const { reply } = this;
    const again = this.actions.regenerate ? button(reply.problem || reply.end === "lost" ? "Try again" : "Regenerate", this.actions.regenerate) : null;
    if (again) again.className = reply.problem ? "accent" : "quiet";
    const facts = [reply.tokens && plural(reply.tokens, "token"), reply.tokensPerSecond && rate(reply.tokensPerSecond), reply.model];
    this.tools.replaceChildren(
      ...[reply.answer ? copyButton(() => reply.answer.trim()) : null, again].filter(Boolean),
      element("span", { className: "fact", textContent: facts.filter(Boolean).join(" · ") }),
    );
    this.tools.hidden = false;
  }

  #showThought(thinking) {
    const { reply } = this;
    this.thought.hidden = reply.thought === "";
    const { title, facts } = thoughtSummary(reply, thinking);
    this.title.textContent = title;
    this.facts.textContent = facts;
    this.thought.classList.toggle("thinking", thinking);
    if (!this.touched) this.thought.open = thinking;
    if (reply.end === null && reply.thought.length > this.shownThought) {
      const box = this.thoughtText;
      const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
      const more = reply.thought.slice(this.shownThought);
      box.append(this.shownThought === 0 ? more.trimStart() : more);
      this.shownThought = reply.thought.length;
      if (atEnd) box.scrollTop = box.scrollHeight;
    }
  }

  /** The thought that is complete is rendered when somebody looks at it. */
  #renderThought() {
    if (this.reply.end === null || !this.thought.open || this.thoughtRendered) return;
    this.thoughtRendered = true;
    this.thoughtText.className = "thought-text text";
    show(this.reply.thought, this.thoughtText);
  }

  #showNotices() {
    const { notices } = this.reply;
    this.notices.hidden = notices.length === 0;
    while (this.notices.childElementCount < notices.length) {
      this.notices.append(element("li", { textContent: sentence(notices[this.notices.childElementCount]) }));
    }
  }
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?…]$/.test(text) ? "" : "."}`;
