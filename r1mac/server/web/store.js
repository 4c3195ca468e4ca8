// Conversations in the browser's own database. Where it has none (or is full), the page works on and says so.

const DATABASE = "r1mac";
const TABLE = "conversations";

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

export class Store {
  /** Opens it; `onTrouble(sentence)` is told what cannot be kept. */
  static async open(onTrouble) {
    const store = new Store();
    store.onTrouble = onTrouble;
    try {
      const opening = indexedDB.open(DATABASE, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore(TABLE, { keyPath: "id" });
      store.database = await settled(opening);
    } catch {
      onTrouble("This browser keeps no conversations here: they are gone when the page is closed.");
    }
    return store;
  }

  /** All conversations, the latest first. A reply that was being written when the page went is marked as cut off. */
  async all() {
    if (!this.database) return [];
    const conversations = await settled(this.#table("readonly").getAll());
    for (const reply of conversations.flatMap((conversation) => conversation.messages)) {
      if (reply.role !== "assistant" || reply.end !== null) continue;
      reply.end = "lost";
      delete reply.id;
      delete reply.paused;
    }
    return conversations.sort((one, other) => other.changedAt - one.changedAt);
  }

  async put(conversation) {
    if (!this.database) return;
    try {
      const table = this.#table("readwrite");
      const putting = settled(table.put(conversation));
      // A page that is being left does not live to see the request's end.
      table.transaction.commit();
      await putting;
    } catch (error) {
      this.onTrouble(
        error?.name === "QuotaExceededError"
          ? "The browser's storage is full: this conversation is not kept. Export it, or delete others."
          : "The browser did not keep this conversation.",
      );
    }
  }

  async delete(id) {
    if (this.database) await settled(this.#table("readwrite").delete(id));
  }

  #table(mode) {
    return this.database.transaction(TABLE, mode).objectStore(TABLE);
  }
}
