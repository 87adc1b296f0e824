// What the page asks of the server. Every function throws an Error whose message can be shown.

const away = "The server does not answer. Is deeprec serve still running?";

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(away);
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    const wait = answer.headers.get("Retry-After");
    throw new Error((said.detail ?? `The server answered ${answer.status}.`) + (wait ? ` Try again in ${wait} s.` : ""));
  }
  return answer;
}

// A server with a token gets it from the address: /#token=... In forms a + is a space, in tokens it is not.
function headers() {
  const token = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B")).get("token");
  return token ? { Authorization: `Bearer ${token}` } : {};
}

export const ready = async () => (await ask("ready")).json();
export const map = async () => (await ask("map")).json();
export const historyOf = async (user) => (await ask(`users/${encodeURIComponent(user)}`)).json();

export async function search(query, signal) {
  const answer = await ask(`items?${new URLSearchParams({ query, limit: 8 })}`, { signal });
  return (await answer.json()).items;
}

// Calls hear(name, data) for each event of an exploration, until it ends.
export async function recommend(body, hear, signal) {
  const answer = await ask("recommend", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let ended = false;
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error(away);
    }
    if (part.done) break;
    const events = (rest + part.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const [name, data] = event.split("\n");
      ended ||= name === "event: ranking";
      hear(name.slice("event: ".length), JSON.parse(data.slice("data: ".length)));
    }
  }
  if (!ended) throw new Error(away);
}
