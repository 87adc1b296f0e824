// The map: every item is a point; the history, found items and ranked items are highlighted.

const order = ["history", "found", "ranked"];

export class ItemMap {
  constructor(canvas, label) {
    this.canvas = canvas;
    this.label = label;
    this.points = [];
    this.indices = new Map();
    this.kinds = new Map();
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    canvas.addEventListener("pointermove", (event) => this.showTitle(event));
    canvas.addEventListener("pointerleave", () => (this.label.textContent = ""));
  }

  show({ ids, titles, points }) {
    this.points = points;
    this.titles = titles;
    this.indices = new Map(ids.map((id, index) => [id, index]));
    this.draw();
  }

  clear() {
    this.kinds.clear();
    this.draw();
  }

  // An item keeps its highest kind.
  highlight(kind, ids) {
    for (const id of ids) {
      const index = this.indices.get(id);
      if (index === undefined) continue;
      const before = this.kinds.get(index);
      if (before === undefined || order.indexOf(kind) > order.indexOf(before)) this.kinds.set(index, kind);
    }
    this.draw();
  }

  counts() {
    const counts = { history: 0, found: 0, ranked: 0 };
    for (const kind of this.kinds.values()) counts[kind] += 1;
    return counts;
  }

  at(index, width, height) {
    const [x, y] = this.points[index];
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
    const dot = (index, colour, size) => {
      pen.fillStyle = colour;
      pen.beginPath();
      pen.arc(...this.at(index, width, height), size, 0, 7);
      pen.fill();
    };
    const all = style.getPropertyValue("--all");
    const small = this.points.length > 5000 ? 1 : 2;
    this.points.forEach((_, index) => dot(index, all, small));
    const highlighted = [...this.kinds].sort((a, b) => order.indexOf(a[1]) - order.indexOf(b[1]));
    for (const [index, kind] of highlighted) dot(index, style.getPropertyValue(`--${kind}`), kind === "ranked" ? 6 : 5);
    const { history, found, ranked } = this.counts();
    this.canvas.setAttribute(
      "aria-label",
      `Map of all ${this.points.length} items: ${history} of the history, ${found + ranked} found, ${ranked} of these ranked`,
    );
  }

  showTitle(event) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    let [best, nearest] = [undefined, 100];
    const near = (index) => {
      const [x, y] = this.at(index, width, height);
      const far = (x - event.offsetX) ** 2 + (y - event.offsetY) ** 2;
      if (far < nearest) [best, nearest] = [index, far];
    };
    this.points.forEach((_, index) => near(index));
    this.label.textContent = best === undefined ? "" : this.titles[best];
  }
}
