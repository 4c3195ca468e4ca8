// A conversation as a value, and what is made of it. No elements here.
//
// A question is { role: "user", text }. A reply is { role: "assistant", thought, answer, notices, model, end, thinkTokens,
// thinkSeconds, tokens, tokensPerSecond, problem }; `end` is null while it is written, then the reason, or "lost".

import { duration, plural } from "./numbers.js";

const MOST_TITLE = 60;

export function newConversation() {
  const now = Date.now();
  return { id: crypto.randomUUID?.() ?? `${now}-${Math.random()}`, title: "", createdAt: now, changedAt: now, messages: [] };
}

export const newReply = (model) => ({
  role: "assistant", thought: "", answer: "", notices: [], model, end: null,
  thinkTokens: null, thinkSeconds: null, tokens: null, tokensPerSecond: null, problem: null,
});

export function titleFrom(text) {
  const line = text.trim().split("\n")[0].replace(/\s+/g, " ");
  return line.length > MOST_TITLE ? `${line.slice(0, MOST_TITLE - 1).trimEnd()}…` : line || "New chat";
}

/** The messages as the API takes them: answers without their thoughts, as R1 wants it. */
export function asRequest(messages, systemPrompt) {
  const said = messages
    .map((message) => ({ role: message.role, content: message.role === "user" ? message.text : message.answer }))
    .filter((message) => message.content !== "");
  return systemPrompt.trim() ? [{ role: "system", content: systemPrompt }, ...said] : said;
}

const ENDINGS = {
  length: "The reply reached its limit of tokens.",
  context: "The context is full: begin a new chat, or ask for more with `--context`.",
  memory: "Memory ran out; the reply was put down.",
  loop: "The answer went in circles and was ended.",
  cancelled: "Stopped.",
  lost: "The reply was cut off.",
};

/** What a person should know of how a reply ended; null for the ordinary end. */
export const endingText = (reply) => reply.problem ?? ENDINGS[reply.end] ?? null;

export function thoughtSummary(reply, thinking) {
  const parts = [];
  if (reply.thinkSeconds !== null) parts.push(duration(reply.thinkSeconds));
  if (reply.thinkTokens !== null) parts.push(plural(reply.thinkTokens, "token"));
  return { title: thinking ? "Thinking" : "Thought", facts: parts.join(" · ") };
}

export function asMarkdown(conversation) {
  const parts = [`# ${conversation.title}`];
  for (const message of conversation.messages) {
    if (message.role === "user") {
      parts.push("## Question", message.text);
      continue;
    }
    parts.push(`## ${message.model || "Answer"}`);
    if (message.thought) {
      parts.push("<details><summary>Thought</summary>", message.thought.trim(), "</details>");
    }
    parts.push(message.answer.trim());
    if (endingText(message)) parts.push(`*${endingText(message)}*`);
  }
  return `${parts.join("\n\n")}\n`;
}

export const asJson = (conversation) => `${JSON.stringify({ r1mac: 1, ...conversation }, null, 2)}\n`;

export function fileName(conversation, ending) {
  const words = conversation.title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  return `${words.slice(0, MOST_TITLE) || "chat"}.${ending}`;
}
