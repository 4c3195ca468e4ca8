// The context: how long conversations with the chosen model may be. It is a setting of the server, not of the page.

import { chooseContext, contexts } from "./api.js";
import { byId, element } from "./elements.js";
import { count, memory } from "./numbers.js";

const READABLE_MS = 8000;
// Somebody who goes through the list by keyboard chooses what they stop at.
const SETTLED_MS = 400;

/** 32768 is 32K; what is no multiple of 1,024 is said in full. */
const short = (tokens) => (tokens % 1024 ? count(tokens) : `${tokens / 1024}K`);

export class ContextChoice {
  /** `onWait(waiting)` is told whether a choice is on its way, so that the server is asked more often. */
  constructor(onWait) {
    this.onWait = onWait;
    this.model = null; // that is chosen on the page
    this.wanted = null; // what was chosen and is not yet in force
    this.asking = null; // the latest choice that the server was not told of yet, or has not answered
    byId("context").onchange = (event) => {
      const tokens = Number(event.target.value);
      const asking = { model: this.model, tokens };
      this.asking = asking;
      this.#note(`${short(tokens)} tokens of context: asking the server …`);
      this.#wait(tokens);
      clearTimeout(this.settling);
      this.settling = setTimeout(() => this.#choose(asking), SETTLED_MS);
    };
  }

  /** Shows what may be chosen for a model. */
  async show(model) {
    if (model !== this.model) {
      clearTimeout(this.settling);
      this.asking = null;
      this.#note("");
      this.#wait(null);
    }
    this.model = model;
    try {
      const told = await contexts(model);
      if (model === this.model && !this.asking) this.#told(told);
    } catch {
      // The model may have gone; what is at work is told by others.
      if (model === this.model) byId("context").parentElement.hidden = true;
    }
  }

  /** Hears the server's state: another page, or a program, may choose too. */
  hear(state) {
    const select = byId("context");
    const known = state.model === this.model && state.safe_tokens;
    select.title = known ? `A conversation of up to ${count(state.safe_tokens)} tokens leaves room for thought and answer.` : "";
    const key = [state.model, state.context_tokens, state.next_context_tokens].join();
    const settled = this.wanted !== null && !state.next_context_tokens;
    if (this.asking || this.model === null || (key === this.key && !settled)) return;
    this.key = key;
    this.show(this.model);
  }

  async #choose(asking) {
    let told = null;
    let refusal = null;
    try {
      told = await chooseContext(asking.model, asking.tokens);
    } catch (error) {
      refusal = error.message;
    }
    if (asking !== this.asking) return; // something else was chosen meanwhile
    this.asking = null;
    if (told) {
      this.#told(told);
      return;
    }
    this.#wait(null);
    this.#offer(this.told);
    this.#note(sentence(refusal), "bad");
  }

  #told(told) {
    this.told = told;
    this.#offer(told);
    const { wanted } = this;
    const next = told.next_context_tokens;
    if (next !== null) {
      this.#wait(next);
      this.#note(`The context becomes ${short(next)} tokens when the replies at work have ended.`);
    } else if (wanted !== null) {
      this.#wait(null);
      if (told.problem) this.#note(`The context stays at ${short(told.context_tokens)} tokens: ${sentence(told.problem, true)}`, "bad");
      else if (!told.loaded) this.#note(`${short(told.context_tokens)} tokens of context, once this model is loaded.`, "brief");
      else this.#note(`The context is now ${short(told.context_tokens)} tokens.`, "brief");
    }
  }

  #offer(told) {
    const select = byId("context");
    const chosen = told.next_context_tokens ?? told.context_tokens;
    select.replaceChildren(...told.offers.map((offer) => option(offer, told, chosen)));
    select.value = String(chosen);
    select.disabled = told.offers.filter((offer) => offer.fits).length < 2;
    select.parentElement.hidden = false;
  }

  #wait(tokens) {
    this.wanted = tokens;
    byId("context").setAttribute("aria-busy", String(tokens !== null));
    this.onWait(tokens !== null);
  }

  /** Says something below the head: until the next time, or while it takes to read it. */
  #note(text, kind = "") {
    const note = byId("context-note");
    clearTimeout(this.timer);
    note.textContent = text;
    note.classList.toggle("bad", kind === "bad");
    if (kind === "brief") this.timer = setTimeout(() => this.#note(""), READABLE_MS);
  }
}

function option({ context_tokens: tokens, total_bytes: bytes, fits }, told, chosen) {
  const words = [`${short(tokens)} context`];
  // What is in use needs no price: the gauge beside it shows it.
  if (tokens !== chosen) words.push(` · ${memory(bytes)}`);
  if (!fits) words.push(", too much");
  else if (tokens === told.longest_context_tokens && tokens < told.model_context_tokens) words.push(", the most that fits");
  return element("option", { value: String(tokens), textContent: words.join(""), disabled: !fits && tokens !== chosen });
}

function sentence(text, inner = false) {
  const begun = inner ? text : `${text.charAt(0).toUpperCase()}${text.slice(1)}`;
  return /[.!?)]$/.test(begun) ? begun : `${begun}.`;
}
