// What may be recommended: categories, brands and years as chips, which a click removes.

import { make } from "./cards.js";

const byId = (id) => document.getElementById(id);

export class Filters {
  #categories = [];
  #brands = [];
  #years = null;
  #choices = { categories: [], brands: [], years: null };

  constructor() {
    for (const [kind, names] of [["category", () => this.#categories], ["brand", () => this.#brands]]) {
      byId(kind).addEventListener("change", ({ target }) => {
        if (target.value && !names().includes(target.value)) names().push(target.value);
        target.value = "";
        this.#show();
      });
    }
    byId("years").addEventListener("submit", (event) => {
      event.preventDefault();
      const inputs = [byId("first-year"), byId("last-year")];
      const [first, last] = inputs.map(({ value }, end) => (value === "" ? this.#choices.years[end] : Number(value)));
      this.#years = [Math.min(first, last), Math.max(first, last)];
      for (const input of inputs) input.value = "";
      this.#show();
    });
  }

  // The filter of a request; undefined where everything may be recommended.
  get value() {
    const some = this.#categories.length || this.#brands.length || this.#years;
    if (!some) return undefined;
    return { categories: [...this.#categories], brands: [...this.#brands], ...(this.#years && { years: this.#years }) };
  }

  set value({ categories = [], brands = [], years = null } = {}) {
    this.#categories = categories.map(String);
    this.#brands = brands.map(String);
    this.#years = years && years.map(Number);
    this.#show();
  }

  // Offer what the catalogue has; what it lacks stays hidden.
  offer(choices) {
    this.#choices = choices;
    for (const [kind, names] of [["category", choices.categories], ["brand", choices.brands]]) {
      byId(kind).append(...[...names].sort().map((name) => make("option", { value: name, text: name })));
      byId(`${kind}-part`).hidden = !names.length;
    }
    if (choices.years) {
      for (const [end, id] of ["first-year", "last-year"].entries()) byId(id).placeholder = choices.years[end];
    }
    byId("years").hidden = !choices.years;
    byId("filter").hidden = !choices.categories.length && !choices.brands.length && !choices.years;
  }

  #show() {
    const chip = (text, remove) => {
      const button = make("button", { type: "button", class: "chip", text: `${text} ×`, "aria-label": `Remove ${text}` });
      button.addEventListener("click", () => {
        remove();
        this.#show();
        byId("filter").focus();
      });
      return make("li", {}, button);
    };
    const named = [this.#categories, this.#brands].flatMap((names) =>
      names.map((name) => chip(name, () => names.splice(names.indexOf(name), 1))),
    );
    const years = this.#years ? [chip(this.#years.join("–"), () => (this.#years = null))] : [];
    byId("chips").replaceChildren(...named, ...years);
    byId("chips").hidden = !named.length && !years.length;
  }
}
