// Requests to the server. Every function throws an Error whose message can be shown.

const unreachable = "The server does not answer. Is deeprec serve still running?";

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(unreachable);
  }
  if (!response.ok) {
    const { detail = `The server answered ${response.status}.` } = await response.json().catch(() => ({}));
    const wait = response.headers.get("Retry-After");
    throw new Error(detail + (wait ? ` Try again in ${wait} s.` : ""));
  }
  return response;
}

// The token comes from the address: /#token=... URLSearchParams would read a + as a space.
function headers() {
  const token = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B")).get("token");
  return token ? { Authorization: `Bearer ${token}` } : {};
}

export const ready = async () => (await request("ready")).json();
export const filters = async () => (await request("filters")).json();
export const map = async () => (await request("map")).json();
// A query and not a path: the browser itself resolves the user ".." in a path.
export const historyOf = async (user) => (await request(`users?${new URLSearchParams({ user })}`)).json();

export async function search(query, signal) {
  const response = await request(`items?${new URLSearchParams({ query, limit: 8 })}`, { signal });
  return (await response.json()).items;
}

// Calls onEvent(name, data) for each event of an exploration, until it ends.
export async function recommend(body, onEvent, signal) {
  const response = await request("recommend", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let ended = false;
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error(unreachable);
    }
    if (part.done) break;
    const events = (rest + part.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const [name, data] = event.split("\n");
      ended ||= name === "event: ranking";
      onEvent(name.slice("event: ".length), JSON.parse(data.slice("data: ".length)));
    }
  }
  if (!ended) throw new Error(unreachable);
}
