// The page: whom to explore for, with what, and what then happens.

import * as api from "./api.js";
import { Exploration, make } from "./cards.js";
import { SpaceMap } from "./map.js";
import { searchBox } from "./search.js";

const part = (id) => document.getElementById(id);
const map = new SpaceMap(part("map"), part("map-item"));
let history = [];
let running = null;
// What was explored last: whom for, which may be another than who is chosen by now, and what happened.
let explored = [];
let recorded = [];

const complain = (message) => (part("problem").textContent = message);
const announce = (message) => (part("news").textContent = message);

function showHistory() {
  part("history").replaceChildren(
    ...history.map((item, place) => {
      const remove = make("button", { type: "button", class: "small", text: "Remove", "aria-label": `Remove ${item.title}` });
      remove.addEventListener("click", () => {
        part("user").value = "";
        history.splice(place, 1);
        showHistory();
        part("search").focus();
      });
      return make("li", {}, make("div", {}, make("span", { text: item.title }), remove));
    }),
  );
  part("history-empty").hidden = history.length > 0;
  part("explore").disabled = history.length === 0 || running !== null;
  map.clear();
  map.light("history", history.map(({ id }) => id));
}

function add(item) {
  part("user").value = "";
  if (!history.some(({ id }) => id === item.id)) history.push(item);
  showHistory();
  announce(`${item.title} added.`);
}

async function takeUser() {
  const user = part("user").value;
  if (!user) return;
  try {
    const { items } = await api.historyOf(user);
    if (part("user").value !== user) return;
    history = items;
    showHistory();
    complain("");
  } catch (error) {
    complain(error.message);
  }
}

const chosen = () => [...document.querySelectorAll("#policies input:checked")].map(({ value }) => value);

function begin(policies, seen) {
  const shown = policies.map((policy) => new Exploration(policy, (calls) => explore([policy], seen, calls)));
  part("explorations").replaceChildren(...shown.map(({ element }) => element));
  map.clear();
  map.light("history", seen.map(({ id }) => id));
  return new Map(policies.map((policy, place) => [policy, shown[place]]));
}

function hear(exploration, policy, name, data) {
  exploration.hear(name, data);
  if (name === "turn") {
    map.light("turn", data.items.map(({ id }) => id));
    announce(`${policy}, call ${data.call}: looks for ${data.preference}; ${data.items.length} items came back.`);
  }
  if (name === "ranking") {
    map.light("pick", data.items.map(({ id }) => id));
    announce(`${policy} ranked ${data.items.length} items. First: ${data.items[0]?.title ?? "nothing"}.`);
  }
}

function busy(controller) {
  running = controller;
  part("explore").disabled = running !== null || history.length === 0;
  part("stop").disabled = running === null;
  part("save").disabled = running !== null || recorded.length === 0;
}

async function explore(policies, seen, calls = []) {
  running?.abort();
  if (!policies.length) return complain("Choose at least one to explore with.");
  complain("");
  const controller = new AbortController();
  busy(controller);
  explored = seen;
  recorded = [];
  const started = performance.now();
  const explorations = begin(policies, seen);
  await Promise.all(
    policies.map(async (policy) => {
      const note = (name, data) => {
        recorded.push({ after: Math.round(performance.now() - started), policy, name, data });
        hear(explorations.get(policy), policy, name, data);
      };
      // The server takes the latest 500.
      const body = { history: seen.slice(-500).map(({ id }) => id), policy, calls };
      try {
        await api.recommend(body, note, controller.signal);
      } catch (error) {
        explorations.get(policy).fail(error.name === "AbortError" ? "Stopped." : error.message);
        if (error.name !== "AbortError") complain(error.message);
      }
    }),
  );
  if (running === controller) busy(null);
}

function save() {
  const kept = JSON.stringify({ history: explored, events: recorded }, null, 1);
  const link = make("a", { download: "exploration.json", href: URL.createObjectURL(new Blob([kept])) });
  link.click();
  URL.revokeObjectURL(link.href);
}

async function replay(file) {
  const controller = new AbortController();
  try {
    const kept = JSON.parse(await file.text());
    const seen = kept.history.map(({ id, title }) => ({ id: String(id), title: String(title) }));
    const policies = [...new Set(kept.events.map(({ policy }) => policy))];
    running?.abort();
    busy(controller);
    history = [...seen];
    explored = seen;
    recorded = kept.events;
    showHistory();
    const explorations = begin(policies, seen);
    const started = performance.now();
    for (const { after, policy, name, data } of recorded) {
      const wait = Math.min(after, 60000) - (performance.now() - started);
      if (wait > 0) await new Promise((go) => setTimeout(go, wait));
      if (controller.signal.aborted) break;
      hear(explorations.get(policy), policy, name, data);
    }
    if (running === controller) busy(null);
  } catch {
    complain(`${file.name} is no saved exploration: choose a file that Save made.`);
    if (running === controller) busy(null);
  }
}

async function open() {
  searchBox(part("search"), part("suggestions"), add, complain);
  part("user").addEventListener("change", takeUser);
  part("explore").addEventListener("click", () => explore(chosen(), [...history]));
  part("stop").addEventListener("click", () => running?.abort());
  part("save").addEventListener("click", save);
  part("replay").addEventListener("change", ({ target }) => target.files.length && replay(target.files[0]));
  showHistory();
  try {
    const { policies, users } = await api.ready();
    part("policies").replaceChildren(
      ...policies.map((policy, place) => {
        const box = make("input", { type: "checkbox", value: policy });
        box.checked = place === 0;
        return make("label", {}, box, policy);
      }),
    );
    part("user").append(...users.map((user) => make("option", { value: user, text: `user ${user}` })));
    if (users.length) part("user").value = users[0];
    await takeUser();
    map.show(await api.map());
    showHistory();
  } catch (error) {
    complain(error.message);
  }
}

open();
