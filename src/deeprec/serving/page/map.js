// The map of the item space: every item a point; history, finds and picks light up.

const order = ["history", "turn", "pick"];

export class SpaceMap {
  constructor(canvas, label) {
    this.canvas = canvas;
    this.label = label;
    this.points = [];
    this.places = new Map();
    this.lit = new Map();
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    canvas.addEventListener("pointermove", (event) => this.name(event));
    canvas.addEventListener("pointerleave", () => (this.label.textContent = ""));
  }

  show({ ids, titles, points }) {
    this.points = points;
    this.titles = titles;
    this.places = new Map(ids.map((id, place) => [id, place]));
    this.draw();
  }

  clear() {
    this.lit.clear();
    this.draw();
  }

  // An item keeps the highest of the kinds it was lit as.
  light(kind, ids) {
    for (const id of ids) {
      const place = this.places.get(id);
      if (place === undefined) continue;
      const before = this.lit.get(place);
      if (before === undefined || order.indexOf(kind) > order.indexOf(before)) this.lit.set(place, kind);
    }
    this.draw();
  }

  counts() {
    const found = { history: 0, turn: 0, pick: 0 };
    for (const kind of this.lit.values()) found[kind] += 1;
    return found;
  }

  at(place, width, height) {
    const [x, y] = this.points[place];
    return [10 + x * (width - 20), 10 + y * (height - 20)];
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const scale = devicePixelRatio || 1;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(document.documentElement);
    const dot = (place, colour, size) => {
      pen.fillStyle = colour;
      pen.beginPath();
      pen.arc(...this.at(place, width, height), size, 0, 7);
      pen.fill();
    };
    const all = style.getPropertyValue("--all");
    const small = this.points.length > 5000 ? 1 : 2;
    this.points.forEach((_, place) => dot(place, all, small));
    const lit = [...this.lit].sort((a, b) => order.indexOf(a[1]) - order.indexOf(b[1]));
    for (const [place, kind] of lit) dot(place, style.getPropertyValue(`--${kind}`), kind === "pick" ? 6 : 5);
    const { history, turn, pick } = this.counts();
    const found = turn + pick;
    this.canvas.setAttribute(
      "aria-label",
      `Map of all ${this.points.length} items: ${history} of the history, ${found} found, ${pick} of these ranked`,
    );
  }

  name(event) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    let [best, nearest] = [undefined, 100];
    const near = (place) => {
      const [x, y] = this.at(place, width, height);
      const far = (x - event.offsetX) ** 2 + (y - event.offsetY) ** 2;
      if (far < nearest) [best, nearest] = [place, far];
    };
    this.points.forEach((_, place) => near(place));
    this.label.textContent = best === undefined ? "" : this.titles[best];
  }
}
