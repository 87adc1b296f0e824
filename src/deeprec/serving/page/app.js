// The page: a history, the policies that explore for it, and their explorations.

import * as api from "./api.js";
import { Exploration, make } from "./cards.js";
import { Filters } from "./filters.js";
import { ItemMap } from "./map.js";
import { searchBox } from "./search.js";

const byId = (id) => document.getElementById(id);
const map = new ItemMap(byId("map"), byId("map-item"));
const filters = new Filters();
let history = [];
let running = null;
// The last exploration: its history and filter, which may differ from those shown now, and its events.
let explored = { history: [] };
let recorded = [];

const showProblem = (message) => (byId("problem").textContent = message);
const announce = (message) => (byId("status").textContent = message);

function showHistory() {
  byId("history").replaceChildren(
    ...history.map((item, index) => {
      const remove = make("button", { type: "button", class: "small", text: "Remove", "aria-label": `Remove ${item.title}` });
      remove.addEventListener("click", () => {
        byId("user").value = "";
        history.splice(index, 1);
        showHistory();
        byId("search").focus();
      });
      return make("li", {}, make("div", {}, make("span", { text: item.title }), remove));
    }),
  );
  byId("history-empty").hidden = history.length > 0;
  byId("explore").disabled = history.length === 0 || running !== null;
  map.clear();
  map.highlight("history", history.map(({ id }) => id));
}

function add(item) {
  byId("user").value = "";
  if (!history.some(({ id }) => id === item.id)) history.push(item);
  showHistory();
  announce(`${item.title} added.`);
}

async function loadUser() {
  const user = byId("user").value;
  if (!user) return;
  try {
    const { items } = await api.historyOf(user);
    if (byId("user").value !== user) return;
    history = items;
    showHistory();
    showProblem("");
  } catch (error) {
    showProblem(error.message);
  }
}

const chosen = () => [...document.querySelectorAll("#policies input:checked")].map(({ value }) => value);

// `asked` is the history and the filter.
function showExplorations(policies, asked) {
  const shown = policies.map((policy) => new Exploration(policy, (calls) => explore([policy], asked, calls)));
  byId("explorations").replaceChildren(...shown.map(({ element }) => element));
  map.clear();
  map.highlight("history", asked.history.map(({ id }) => id));
  return new Map(policies.map((policy, index) => [policy, shown[index]]));
}

function onEvent(exploration, policy, name, data) {
  exploration.onEvent(name, data);
  if (name === "turn") {
    map.highlight("found", data.items.map(({ id }) => id));
    announce(`${policy}, call ${data.call}: preference ${data.preference}; ${data.items.length} items found.`);
  }
  if (name === "ranking") {
    map.highlight("ranked", data.items.map(({ id }) => id));
    announce(`${policy} ranked ${data.items.length} items. First: ${data.items[0]?.title ?? "nothing"}.`);
  }
}

function setRunning(controller) {
  running = controller;
  byId("explore").disabled = running !== null || history.length === 0;
  byId("stop").disabled = running === null;
  byId("save").disabled = running !== null || recorded.length === 0;
}

async function explore(policies, asked, calls = []) {
  running?.abort();
  if (!policies.length) return showProblem("Choose at least one policy.");
  showProblem("");
  const controller = new AbortController();
  setRunning(controller);
  explored = asked;
  recorded = [];
  const started = performance.now();
  const explorations = showExplorations(policies, asked);
  await Promise.all(
    policies.map(async (policy) => {
      const record = (name, data) => {
        recorded.push({ after: Math.round(performance.now() - started), policy, name, data });
        onEvent(explorations.get(policy), policy, name, data);
      };
      // The server accepts 500 items.
      const seen = asked.history.slice(-500).map(({ id }) => id);
      const body = { history: seen, filter: asked.filter, policy, calls };
      try {
        await api.recommend(body, record, controller.signal);
      } catch (error) {
        explorations.get(policy).fail(error.name === "AbortError" ? "Stopped." : error.message);
        if (error.name !== "AbortError") showProblem(error.message);
      }
    }),
  );
  if (running === controller) setRunning(null);
}

function save() {
  const saved = JSON.stringify({ ...explored, events: recorded }, null, 1);
  const link = make("a", { download: "exploration.json", href: URL.createObjectURL(new Blob([saved])) });
  link.click();
  URL.revokeObjectURL(link.href);
}

async function replay(file) {
  const controller = new AbortController();
  try {
    const saved = JSON.parse(await file.text());
    const seen = saved.history.map(({ id, title }) => ({ id: String(id), title: String(title) }));
    const policies = [...new Set(saved.events.map(({ policy }) => policy))];
    running?.abort();
    setRunning(controller);
    history = [...seen];
    filters.value = saved.filter;
    explored = { history: seen, filter: filters.value };
    recorded = saved.events;
    showHistory();
    const explorations = showExplorations(policies, explored);
    const started = performance.now();
    for (const { after, policy, name, data } of recorded) {
      const wait = Math.min(after, 60000) - (performance.now() - started);
      if (wait > 0) await new Promise((go) => setTimeout(go, wait));
      if (controller.signal.aborted) break;
      onEvent(explorations.get(policy), policy, name, data);
    }
    if (running === controller) setRunning(null);
  } catch {
    showProblem(`${file.name} is not a saved exploration: choose a file from Save.`);
    if (running === controller) setRunning(null);
  }
}

async function open() {
  searchBox(byId("search"), byId("suggestions"), add, showProblem);
  byId("user").addEventListener("change", loadUser);
  byId("explore").addEventListener("click", () => explore(chosen(), { history: [...history], filter: filters.value }));
  byId("stop").addEventListener("click", () => running?.abort());
  byId("save").addEventListener("click", save);
  byId("replay").addEventListener("change", ({ target }) => target.files.length && replay(target.files[0]));
  showHistory();
  try {
    const { policies, users } = await api.ready();
    byId("policies").replaceChildren(
      ...policies.map((policy, index) => {
        const box = make("input", { type: "checkbox", value: policy });
        box.checked = index === 0;
        return make("label", {}, box, policy);
      }),
    );
    byId("user").append(...users.map((user) => make("option", { value: user, text: `user ${user}` })));
    if (users.length) byId("user").value = users[0];
    await loadUser();
    filters.offer(await api.filters());
    map.show(await api.map());
    showHistory();
  } catch (error) {
    showProblem(error.message);
  }
}

open();
