// An exploration as cards: the text being written, turns, the ranking. All text is set as text, never as markup.

export function make(tag, { text, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

// The policy's text without the protocol's tags.
const readable = (text) => text.replace(/<[^<>]*>?/g, " ").trimStart();

// Text as the server accepts it in a request: one line, no tags; joiners stay. A line break separates phrases, as ; does.
const plain = (text) => [...text.replace(/(?![\u200c\u200d])[<>\p{C}\p{Zl}\p{Zp}]/gu, " ").trim()].slice(0, 500).join("");
const phrases = (text) => plain(text.replace(/\n/g, "; "));

export class Exploration {
  // onEdit(calls) explores again from an edited call; calls end with it.
  constructor(policy, onEdit) {
    this.policy = policy;
    this.calls = [];
    this.onEdit = onEdit;
    this.written = "";
    this.writing = make("p", { class: "writing", text: "…" });
    this.element = make(
      "section",
      { class: "exploration", "aria-label": `Explored by ${policy}`, "data-policy": policy },
      make("h2", { text: policy }),
      make("div", { class: "card pending" }, this.writing),
    );
  }

  get pending() {
    return this.element.querySelector(".pending");
  }

  onEvent(name, data) {
    if (name === "text") this.write(data.text);
    if (name === "turn") this.turn(data);
    if (name === "ranking") this.rank(data);
  }

  write(text) {
    this.written += text;
    this.writing.textContent = readable(this.written) || "…";
  }

  turn({ call, by_policy, thought, preference, items }) {
    this.calls.push({ by_policy, thought: plain(thought), preference: phrases(preference) });
    this.written = "";
    this.writing.textContent = "…";
    const edit = make("button", { type: "button", class: "small", text: "Edit", "aria-label": `Edit call ${call}` });
    const list = make("ol", { "aria-label": `Found in call ${call}` }, ...items.map(itemLine));
    const card = make(
      "article",
      { class: "card turn", "aria-label": `Call ${call}` },
      make("header", {}, make("h3", { text: `Call ${call}` }), edit),
      make("p", { class: "thought", text: thought }),
      make("p", { class: "preference", text: `Preference: ${preference}` }),
      list,
    );
    edit.addEventListener("click", () => this.edit(card, edit, call));
    this.element.insertBefore(card, this.pending);
  }

  edit(card, button, call) {
    button.disabled = true;
    const { preference } = this.calls[call - 1];
    const name = `edit-${Math.random().toString(36).slice(2)}`;
    const input = make("input", { type: "text", id: name, maxlength: 500 });
    input.value = preference;
    const go = make("button", { type: "submit", class: "first", text: "Explore from here" });
    const label = make("label", { for: name, text: "Preference (phrases separated by ;)" });
    const form = make("form", { class: "edit" }, label, input, go);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const edited = phrases(input.value);
      if (edited) this.onEdit([...this.calls.slice(0, call - 1), { preference: edited }]);
    });
    card.insertBefore(form, card.querySelector("ol"));
    input.focus();
  }

  rank({ items, origin, stop, faults, error, thought, tokens, seconds }) {
    const byModel = this.policy !== "trm-alone";
    const notFound = byModel ? "fallback: recommender without a preference" : "recommender without a preference";
    const ranked = items.map(({ title, call, preference }) => {
      const source = call === null ? notFound : `found in call ${call}: ${preference}`;
      return make("li", {}, make("span", { text: title }), make("span", { class: "source", text: source }));
    });
    const notes = [];
    if (byModel && origin !== "answer") notes.push(`With fallback: ${origin}.`);
    if (error) notes.push(`The model failed: ${error}.`);
    if (faults.length) notes.push(`Faults: ${[...new Set(faults)].join(", ")}.`);
    this.pending.replaceWith(
      make(
        "article",
        { class: "card ranking", "aria-label": "Ranking" },
        make("h3", { text: "Ranking" }),
        make("p", { class: "thought", text: readable(thought) }),
        make("ol", { class: "ranked-items" }, ...ranked),
        ...notes.map((text) => make("p", { class: "problem", text })),
        make("p", { class: "seconds", text: `${tokens} tokens, ${seconds.toFixed(1)} s, ended: ${stop}` }),
      ),
    );
  }

  fail(message) {
    this.pending?.replaceWith(make("div", { class: "card" }, make("p", { class: "problem", text: message })));
  }
}

function itemLine({ title, categories }) {
  return make("li", {}, make("span", { text: title }), make("span", { class: "categories", text: ` ${categories.join(", ")}` }));
}
