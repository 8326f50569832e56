// What every view uses: elements, numbers, decoded chunks, and the store that holds the one state.

const SVG_NS = "http://www.w3.org/2000/svg";

const put = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
};
const h = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => put(document.createElementNS(SVG_NS, tag), attributes, children);

const fill = (node, ...children) =>
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));

const number = (value, digits = 3) =>
  value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−");
const percent = (value) => `${Math.round(100 * value)} %`;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const mean = (values) => sum(values) / values.length;

const bytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));

// (layer, sentence, 2) in units of each layer's spread, so that layers share one scale.
const decodePoints = (packed, spread) => {
  const whole = new Int16Array(bytes(packed.xy).buffer);
  const each = whole.length / packed.unit.length;
  const points = new Float32Array(whole.length);
  for (let layer = 0; layer < packed.unit.length; layer++) {
    const unit = packed.unit[layer] / (spread[layer] || 1);
    for (let place = layer * each; place < (layer + 1) * each; place++) points[place] = whole[place] * unit;
  }
  return points;
};

// Truth values by layer and sentence, each layer from a new byte.
const decodeHits = (packed, layers) => {
  const raw = bytes(packed);
  const row = raw.length / layers;
  return (layer, sentence) => Boolean(raw[layer * row + (sentence >> 3)] & (128 >> (sentence & 7)));
};

// Colours that are nearly black are lightened on a dark ground.
const readable = (colour, dark) => {
  const parts = [1, 3, 5].map((place) => parseInt(colour.slice(place, place + 2), 16));
  const light = (0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2]) / 255;
  if (dark ? light > 0.42 : light < 0.82) return colour;
  const share = dark ? (light < 0.15 ? 0.72 : 0.34) : 0.3;
  return `rgb(${parts.map((part) => Math.round(part + share * ((dark ? 255 : 0) - part))).join(" ")})`;
};

// The outline of a marker of radius r, for canvas and SVG alike.
const markerPath = (marker, r) => {
  const polygon = (corners) => `M${corners.map(([x, y]) => `${(x * r).toFixed(2)} ${(y * r).toFixed(2)}`).join("L")}Z`;
  const star = (points, inner) =>
    polygon([...Array(2 * points).keys()].map((at) => {
      const [angle, size] = [(Math.PI * at) / points - Math.PI / 2, at % 2 ? inner : 1.3];
      return [size * Math.cos(angle), size * Math.sin(angle)];
    }));
  switch (marker) {
    case "s": return polygon([[-0.88, -0.88], [0.88, -0.88], [0.88, 0.88], [-0.88, 0.88]]);
    case "D": return polygon([[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]]);
    case "^": return polygon([[0, -1.15], [1.1, 0.85], [-1.1, 0.85]]);
    case "v": return polygon([[0, 1.15], [1.1, -0.85], [-1.1, -0.85]]);
    case "P": return polygon([[-0.4, -1.2], [0.4, -1.2], [0.4, -0.4], [1.2, -0.4], [1.2, 0.4], [0.4, 0.4], [0.4, 1.2],
      [-0.4, 1.2], [-0.4, 0.4], [-1.2, 0.4], [-1.2, -0.4], [-0.4, -0.4]]);
    case "X": return star(4, 0.45);
    case "*": return star(5, 0.55);
    default: return `M${r} 0A${r} ${r} 0 1 1 ${-r} 0A${r} ${r} 0 1 1 ${r} 0Z`;
  }
};
const swatch = (look, dark) =>
  s("svg", { class: "tn-swatch", viewBox: "-7 -7 14 14", "aria-hidden": "true" },
    s("path", { d: markerPath(look.marker, 4.6), fill: readable(look.colour, dark) }));

const isCount = (size) => /^\d+$/.test(String(size)); // rather than neurons by name, or towards sentences
const keyOf = {
  off: (state, language) =>
    `off|${language}|${state.kind}|${language === state.language ? state.size : keyOf.count(state)}|${state.value}|${state.control}`,
  count: (state) => (isCount(state.size) ? state.size : state.count),
  listed: (state) => (state.group ? `${keyOf.count(state)}@${state.group}` : keyOf.count(state)), // what the table lists
  neurons: (state) => `neurons|${state.language}|${state.kind}|${keyOf.listed(state)}`,
  evidence: (state) => `evidence|${state.language}|${state.kind}|${state.size}|${state.value}|${state.scope === "last" ? "last" : "all"}`,
  own: (state) => `own|${state.language}|${state.kind}|${keyOf.listed(state)}|${state.own}`,
  said: (state) => state.steering ? `steered|${state.away}|${state.added}|${state.strength}|${state.prompt}`
    : `said|${state.language}|${state.kind}|${state.size}|${state.value}|${state.scope}|${state.control}|${state.prompt}`,
};

// One state for all views, what undoes it, and the chunks that have come so far.
class Store {
  constructor(about, source, given) {
    this.about = about;
    this.source = source;
    const [other] = about.languages.map((one) => one.code).filter((code) => code !== about.hub);
    this.first = {
      view: "map", layer: Math.floor(about.layers / 2), language: other,
      kind: "type1", size: about.size, count: about.size, value: "zero", control: about.controls[0],
      shown: source.offline ? ["untouched", "set"] : ["untouched"], morph: false, colour: "language", hidden: [],
      joined: false, measure: "", fixed: true, neuron: "", ticked: [], group: "", own: "",
      scope: "last", prompt: "", steering: false, away: about.hub, added: other, strength: 1,
    };
    this.state = { ...this.first, ...given };
    if (isCount(this.state.size)) this.state.count = Number(this.state.size);
    this.past = [];
    this.data = new Map();
    this.listeners = new Set();
    this.wanted = [];
    this.asked = "";
    this.refused = new Map(); // what failed or was cancelled, which is not asked for again by itself
    this.failing = "";
    this.asking = [];
    this.waiting = false;
    this.status = { text: "", said: "", failed: "", gone: false, job: false };
  }
  get language() { return this.look(this.state.language); }
  look(code) { return this.about.languages.find((one) => one.code === code); }
  name(code) { return this.look(code)?.name ?? code; }

  set(patch, { undoable = true } = {}) {
    const changed = Object.keys(patch).filter((name) => JSON.stringify(patch[name]) !== JSON.stringify(this.state[name]));
    if (!changed.length) return;
    if (undoable) {
      const last = this.past.at(-1);
      const same = last && last.changed === changed.join() && Date.now() - last.at < 900; // one drag is one step
      if (!same) this.past.push({ state: this.state, changed: changed.join(), at: Date.now() });
      else last.at = Date.now();
      if (this.past.length > 200) this.past.shift();
    }
    this.state = { ...this.state, ...patch };
    this.status.failed = this.status.said = "";
    this.tell();
  }
  retry() {
    this.refused.clear();
    this.status.failed = this.asked = "";
    this.tell();
  }
  forget() {
    this.data.clear();
    this.asked = "";
    this.tell();
  }
  step() { if (this.past.length) this.past.at(-1).at = 0; } // what comes next is undone by itself
  undo() {
    const last = this.past.pop();
    if (!last) return;
    this.state = last.state;
    this.tell();
  }
  tell() { for (const listener of this.listeners) listener(); }

  // A chunk, or undefined while it is on its way.
  chunk(key) {
    if (this.data.has(key)) return this.data.get(key);
    if (this.refused.has(key)) { this.failing ||= this.refused.get(key); return undefined; }
    if (!this.wanted.includes(key)) this.wanted.push(key);
    return undefined;
  }
  // Ask for what the last drawing missed; what is looked at comes first, and what is no longer wanted is dropped.
  ask() {
    this.waiting = !this.source.offline && !this.source.visible && this.wanted.length > 0;
    if (this.waiting) { this.wanted = []; return; } // until somebody looks
    const keys = this.wanted.join("\n");
    if (keys !== this.asked) {
      this.asked = keys;
      this.asking = this.wanted; // a text in a key may have lines
      this.source.request(this.wanted);
    }
    this.wanted = [];
  }
  receive(key, chunk) {
    const spread = key === "plane" ? chunk.spread : this.data.get("plane")?.spread;
    if (key.startsWith("off|") && !spread) return void this.later(key, chunk);
    this.data.set(key, this.decoded(key, chunk, spread));
    if (key === "plane") for (const [held, one] of this.held ?? []) this.receive(held, one);
    this.tell();
  }
  // A copy with its points and hits unpacked: other displays of a widget are handed the same chunk.
  decoded(key, chunk, spread) {
    const each = (packed, unpack) => Object.fromEntries(Object.entries(packed).map(([name, value]) => [name, unpack(value)]));
    const points = (packed) => decodePoints(packed, spread), bits = (packed) => decodeHits(packed, this.about.layers);
    if (key === "plane") return { ...chunk, points: each(chunk.points, points) };
    if (key === "ribbon") return each(chunk, (row) => ({ ...row, hits: bits(row.hits) }));
    if (!key.startsWith("off|")) return chunk;
    const role = (own) => ({ ...own, points: points(own.points), hits: bits(own.hits) });
    return { ...chunk, set: role(chunk.set), control: role(chunk.control) };
  }
  later(key, chunk) { (this.held ??= []).push([key, chunk]); }

  // Python that opens the explorer in this state.
  code() {
    const python = (value) =>
      Array.isArray(value) ? `[${value.map(python).join(", ")}]`
        : value === true ? "True" : value === false ? "False" : JSON.stringify(value);
    const skipped = ["count", "neuron"];
    const changed = Object.keys(this.first).filter((name) => !skipped.includes(name)
      && (name === "view" || JSON.stringify(this.state[name]) !== JSON.stringify(this.first[name])));
    const options = [...(this.about.options ?? []), ...changed.map((name) => `${name}=${python(this.state[name])}`)];
    const load = `model, corpus = tn.load_model(${python(this.about.model)}), tn.load_corpus(${python(this.about.corpus)})`;
    return `import tnkit as tn\n\n${load}\ntn.explore(model, corpus, ${options.join(", ")})\n`;
  }
}

const download = (name, content, type) => {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 2000);
};
const csv = (rows) => rows.map((row) => row.map((cell) => {
  const text = cell === null || cell === undefined ? "" : String(cell);
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}).join(",")).join("\r\n") + "\r\n";

// A row of buttons of which one is pressed.
const segments = (label, options, current, choose) =>
  h("div", { class: "tn-segments", role: "group", "aria-label": label },
    options.map(([value, text, title]) =>
      h("button", { type: "button", "aria-pressed": String(value === current), title, onclick: () => choose(value) }, text)));
const chooser = (label, options, current, choose, attributes = {}) =>
  h("label", { class: "tn-field" }, h("span", {}, label),
    h("select", { ...attributes, onchange: (event) => choose(event.target.value) },
      options.map(([value, text]) => h("option", { value, selected: String(value) === String(current) }, text))));
