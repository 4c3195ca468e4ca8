// The page: conversations on the left, one of them on the right, at most one reply at work.

import { models, setApiKey } from "./api.js";
import { ContextChoice } from "./context.js";
import { asRequest, newConversation, newReply, titleFrom } from "./conversation.js";
import { ask, byId, element } from "./elements.js";
import { Gauge } from "./gauge.js";
import { ReplyView, questionView } from "./message_view.js";
import { Options } from "./options.js";
import { ReplyRun } from "./reply_run.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";

const NEAR_END_PX = 80;

class App {
  constructor() {
    this.conversations = [];
    this.current = newConversation();
    this.run = null;
    this.view = null; // of the reply at work, where its conversation is the one on the screen
    this.follow = true;
    this.context = new ContextChoice((waiting) => this.gauge.setWaiting(waiting));
    this.gauge = new Gauge((text) => this.say(text), (now) => this.context.hear(now));
    this.options = new Options();
    this.options.onKey = () => this.#connect();
    this.sidebar = new Sidebar({
      onOpen: (conversation) => this.open(conversation),
      onRename: (conversation, title) => { conversation.title = title; this.#keep(conversation); this.#list(); },
      onDelete: (conversation) => this.#delete(conversation),
    });
  }

  async start() {
    this.#listen();
    this.store = await Store.open((trouble) => this.say(trouble));
    this.conversations = await this.store.all();
    const wanted = decodeURIComponent(location.hash.slice(1));
    this.open(this.conversations.find((conversation) => conversation.id === wanted) ?? newConversation());
    await this.#connect();
  }

  say(text) {
    byId("status").textContent = text;
  }

  // A conversation on the screen -----------------------------------------------------------------

  open(conversation) {
    this.current = conversation;
    const kept = this.conversations.includes(conversation);
    history.replaceState(null, "", kept ? `#${conversation.id}` : location.pathname);
    document.title = kept ? `${conversation.title} · r1mac` : "r1mac";
    this.#showMessages();
    this.#list();
    this.#toEnd();
    // Where there is no mouse, the focus would bring up a keyboard.
    if (matchMedia("(hover: hover)").matches) byId("question").focus({ preventScroll: true });
  }

  #showMessages() {
    const { messages } = this.current;
    byId("welcome").hidden = messages.length > 0;
    this.view = null;
    const lastQuestion = messages.findLastIndex((message) => message.role === "user");
    byId("messages").replaceChildren(
      ...messages.map((message, at) => {
        if (message.role === "user") {
          return questionView(message, { onEdit: at === lastQuestion ? () => this.#edit(at) : null });
        }
        const view = new ReplyView(message, {
          steer: (wish, body) => this.run?.steer(wish, body),
          regenerate: at === messages.length - 1 ? () => this.#regenerate() : null,
        });
        if (message === this.run?.reply) this.view = view;
        return view.element;
      }),
    );
  }

  #list() {
    this.sidebar.show(this.conversations, this.current.id, this.run?.conversation.id);
  }

  // Asking ---------------------------------------------------------------------------------------

  send(text) {
    if (!text.trim()) return;
    if (this.run) {
      this.say("One reply at a time: stop the one that is being written, or wait for it.");
      return;
    }
    const { current } = this;
    if (!this.conversations.includes(current)) {
      current.title = titleFrom(text);
      this.conversations.unshift(current);
    }
    current.messages.push({ role: "user", text });
    byId("question").value = "";
    fit();
    this.#ask();
  }

  #regenerate() {
    if (this.run) return;
    const { messages } = this.current;
    this.#ask(messages.at(-1)?.role === "assistant" ? messages.pop() : null);
  }

  #edit(at) {
    if (this.run) return;
    const { messages } = this.current;
    const view = byId("messages").children[at];
    const area = element("textarea", { value: messages[at].text, rows: Math.min(12, messages[at].text.split("\n").length + 1) });
    area.setAttribute("aria-label", "Edit the question");
    const form = element(
      "form", { className: "edit", onsubmit: (event) => {
        event.preventDefault();
        if (this.run || !area.value.trim()) return;
        messages.splice(at, messages.length, { role: "user", text: area.value });
        this.#ask();
      } },
      area,
      element("div", { className: "row end" },
        element("button", { type: "button", textContent: "Cancel", onclick: () => this.#leaveEdit() }),
        element("button", { className: "primary", textContent: "Send" })),
    );
    area.onkeydown = (event) => {
      if (isEnter(event)) { event.preventDefault(); form.requestSubmit(); }
      if (event.key === "Escape") { event.stopPropagation(); this.#leaveEdit(); }
    };
    view.replaceChildren(form);
    area.focus();
  }

  #leaveEdit() {
    this.#showMessages();
    byId("question").focus();
  }

  /** Asks for a reply; where nothing comes of it, *earlier* stays, with what went wrong. */
  async #ask(earlier = null) {
    const conversation = this.current;
    const model = this.options.values.model;
    const request = {
      ...this.options.asRequest(),
      messages: asRequest(conversation.messages, this.options.values.system),
      stream: true,
      stream_options: { include_usage: true },
      r1mac: { events: true },
    };
    if (model) request.model = model;
    const reply = newReply(model);
    conversation.messages.push(reply);
    this.earlier = earlier;
    this.run = new ReplyRun(conversation, reply, {
      changed: () => this.#changed(),
      progress: (text) => this.say(text),
      pace: (pace) => this.gauge.pace(pace),
      keep: () => this.#keep(conversation),
      ended: () => this.#ended(),
    });
    this.#showMessages();
    this.#working(true);
    this.say("Asking …");
    this.#keep(conversation);
    this.open(conversation);
    await this.run.run(request);
  }

  #changed() {
    if (!this.run) return; // a wish was answered after the reply had ended
    const { reply } = this.run;
    const doing = reply.answer ? "Answering" : reply.thought ? "Thinking" : null;
    if (doing && doing !== this.run.doing) {
      this.run.doing = doing;
      this.say(`${doing} …`);
    }
    // One look a frame is enough, however many tokens it brought.
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.view?.update();
      this.#stickToEnd();
    });
  }

  async #ended() {
    const { conversation, reply } = this.run;
    const { view, earlier } = this;
    this.run = null;
    this.view = null;
    if (this.frame) cancelAnimationFrame(this.frame);
    this.frame = null;
    this.#working(false);
    this.say(reply.problem ?? (reply.end === "cancelled" ? "Stopped" : "The answer is complete"));
    if (earlier && reply.problem && !reply.thought && !reply.answer) {
      conversation.messages.splice(-1, 1, Object.assign(earlier, { problem: reply.problem }));
      if (this.current === conversation) this.#showMessages();
    }
    this.#keep(conversation);
    this.#list();
    if (view && this.current === conversation) {
      await view.end();
      this.#stickToEnd();
    }
    if (reply.needsKey) this.#askForKey();
  }

  #working(working) {
    const send = byId("send");
    send.textContent = working ? "Stop" : "Send";
    send.classList.toggle("stop", working);
    this.gauge.setBusy(working);
  }

  // Keeping --------------------------------------------------------------------------------------

  async #keep(conversation) {
    if (!this.conversations.includes(conversation)) return; // deleted while its reply was written
    conversation.changedAt = Date.now();
    await this.store.put(conversation);
  }

  async #delete(conversation) {
    if (this.run?.conversation === conversation) await this.run.stop();
    this.conversations = this.conversations.filter((other) => other !== conversation);
    await this.store.delete(conversation.id);
    if (this.current === conversation) this.open(newConversation());
    else this.#list();
  }

  // The server -----------------------------------------------------------------------------------

  async #connect() {
    this.gauge.refresh();
    try {
      this.#offer(await models());
      this.say("");
    } catch (error) {
      this.say(error.message);
      if (error.status === 401) this.#askForKey();
    }
  }

  async #askForKey() {
    if (document.querySelector("dialog[open]")) return;
    const key = await ask({ title: "API key", text: "This server was started with an API key.", value: "", secret: true });
    if (!key) return;
    setApiKey(key.trim());
    await this.#connect();
  }

  #offer(served) {
    const select = byId("model");
    const chosen = this.options.values.model;
    select.replaceChildren(...served.map((model) => element("option", { value: model.id, textContent: model.display_name || model.id })));
    if (served.some((model) => model.id === chosen)) select.value = chosen;
    this.options.set("model", select.value);
    select.disabled = served.length < 2;
    if (select.value) this.context.show(select.value);
  }

  // Keys, scrolling, theme -------------------------------------------------------------------------

  #listen() {
    const question = byId("question");
    byId("composer").onsubmit = (event) => {
      event.preventDefault();
      if (this.run) this.run.stop();
      else this.send(question.value);
    };
    question.oninput = fit;
    question.onkeydown = (event) => {
      if (!isEnter(event)) return;
      event.preventDefault();
      this.send(question.value);
    };
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.run && !document.querySelector("dialog[open]")) this.run.stop();
    });
    byId("new-chat").onclick = () => { this.open(newConversation()); this.sidebar.close(); question.focus(); };
    byId("model").onchange = (event) => {
      this.options.set("model", event.target.value);
      this.context.show(event.target.value);
    };
    byId("theme").onclick = nextTheme;
    byId("latest").onclick = () => this.#toEnd();
    byId("log").onscroll = () => {
      const log = byId("log");
      this.follow = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX;
      byId("latest").hidden = this.follow;
    };
    // A word below the head takes room from the conversation.
    new ResizeObserver(() => this.#stickToEnd()).observe(byId("log"));
    // A page that goes takes its reply with it: what came until then is kept.
    addEventListener("pagehide", () => {
      if (!this.run) return;
      this.run.left = true;
      this.#keep(this.run.conversation);
    });
  }

  #stickToEnd() {
    if (this.follow) this.#toEnd();
  }

  #toEnd() {
    const log = byId("log");
    log.scrollTop = log.scrollHeight;
    this.follow = true;
    byId("latest").hidden = true;
  }
}

const isEnter = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

/** Lets the field for the question grow with it. */
function fit() {
  const question = byId("question");
  question.style.blockSize = "auto";
  question.style.blockSize = `${question.scrollHeight}px`;
}

function nextTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("r1mac.theme", root.dataset.theme);
  } catch {
    // It holds until the page is closed.
  }
}

new App().start();
