// A combobox that searches titles: arrow keys move, Enter chooses, Escape closes.

import { search } from "./api.js";
import { make } from "./cards.js";

export function searchBox(input, list, choose, showProblem) {
  let found = [];
  let active = -1;
  let pending = new AbortController();
  let timer;

  const close = () => {
    pending.abort();
    found = [];
    active = -1;
    list.hidden = true;
    list.replaceChildren();
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };

  const take = (index) => {
    const item = found[index];
    if (item === undefined) return;
    input.value = "";
    close();
    choose(item);
  };

  const move = (index) => {
    active = (index + found.length) % found.length;
    [...list.children].forEach((option, n) => option.setAttribute("aria-selected", String(n === active)));
    input.setAttribute("aria-activedescendant", `option-${active}`);
    list.children[active].scrollIntoView({ block: "nearest" });
  };

  const look = async () => {
    pending.abort();
    pending = new AbortController();
    const { signal } = pending;
    const query = input.value.trim();
    if (!query) return close();
    try {
      const items = await search(query, signal);
      if (signal.aborted) return;
      found = items;
    } catch (error) {
      if (error.name !== "AbortError") showProblem(error.message);
      return;
    }
    showProblem(found.length ? "" : `No title is similar to “${query}”.`);
    if (!found.length) return close();
    list.replaceChildren(
      ...found.map(({ title }, n) => make("li", { role: "option", id: `option-${n}`, "aria-selected": "false", text: title })),
    );
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    active = -1;
  };

  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, 150);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    if (!found.length) return;
    if (event.key === "ArrowDown") move(active + 1);
    else if (event.key === "ArrowUp") move(active < 0 ? -1 : active - 1);
    else if (event.key === "Enter") take(Math.max(active, 0));
    else return;
    event.preventDefault();
  });
  input.addEventListener("blur", () => setTimeout(close, 150));
  list.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    take([...list.children].indexOf(event.target.closest("li")));
  });
}
