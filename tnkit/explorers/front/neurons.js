// A neuron set as a table that sorts and filters, with one neuron in detail beside it.

const FLAGS = {
  constant: "hardly varies: its mean explains 90 % of its squared activation",
  "last character": "the last character explains half of its variance within a language",
  massive: "ten times as active as the median neuron of its layer",
};

const makeNeurons = (store) => {
  const { about } = store;
  const codes = about.languages.map((one) => one.code);
  const filter = h("input", { type: "search", placeholder: "Filter: a layer, a number, a word it raises", "aria-label": "Filter neurons" });
  const bar = h("div", { class: "tn-tools-row" });
  const scroll = h("div", { class: "tn-table", tabindex: -1 });
  const foot = h("div", { class: "tn-legend" });
  const card = h("aside", { class: "tn-card", tabindex: 0, "aria-label": "Neuron" });
  const about_group = h("div", { class: "tn-tools-row tn-group" });
  const area = h("textarea", { rows: 2, placeholder: "Your own text: what does each neuron do at its tokens?", "aria-label": "Your own text", "data-name": "own" });
  const read = () => { store.refused.delete(keyOf.own({ ...store.state, own: area.value })); store.set({ own: area.value.trim() }); };
  const form = h("div", { class: "tn-own" }, area, h("div", { class: "tn-icons" },
    h("button", { type: "button", "data-name": "read", onclick: read }, "Read"),
    h("button", { type: "button", "data-name": "unread", onclick: () => { area.value = ""; store.set({ own: "" }); } }, "Clear text")));
  area.value = store.state.own;
  keepKeys(area, read);
  const el = h("div", { class: "tn-view tn-neurons" },
    h("div", { class: "tn-main" }, about_group, bar, scroll, foot), h("div", { class: "tn-side" }, !store.source.offline && form, card));
  let by = "rank", down = false, wanted = { flags: [], only: false, here: false }, drawnFor = "";

  const nameOf = (row) => `${row.layer}:${row.neuron}`;
  const own = () => (store.state.own ? store.chunk(keyOf.own(store.state)) : undefined);
  const special = (token) => /^<.*>$/.test(token.trim());
  // The value at the token of one's own text where it is largest.
  const peak = (row) => {
    const said = own();
    const values = said?.values[nameOf(row)]?.filter((_, at) => !special(said.tokens[at]));
    return values?.length ? values.reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most)) : null;
  };
  const rowsOf = (chunk) => {
    const text = filter.value.trim().toLowerCase();
    const listed = chunk.rows.map((row, at) => ({ ...row, rank: at + 1, own: peak(row) })).filter((row) =>
      (!wanted.here || row.layer === store.state.layer)
      && (!wanted.only || row.shared.length === 0)
      && wanted.flags.every((flag) => row.flags.includes(flag))
      && (!text || [`${row.layer}`, `${row.neuron}`, `${row.layer}:${row.neuron}`].includes(text)
        || [...row.raises, ...row.lowers].some((word) => word.toLowerCase().includes(text)) || row.flags.some((flag) => flag.includes(text))));
    const value = (row) => by === "own" ? Math.abs(row.own ?? 0) : by in row ? (Array.isArray(row[by]) ? row[by].length : row[by]) : row.values[chunk.columns.indexOf(by)];
    return listed.sort((a, b) => (down ? value(b) - value(a) : value(a) - value(b)) || a.rank - b.rank);
  };
  // Mean activation in each language, around zero.
  const spark = (row, dark) => {
    const most = Math.max(...row.means.map(Math.abs), 1e-9), step = 9, tall = 22;
    const zero = row.means.every((value) => value >= 0) ? tall : row.means.every((value) => value <= 0) ? 0 : tall / 2;
    const unit = (zero === tall / 2 ? tall / 2 : tall) / most;
    return s("svg", { class: "tn-spark", width: step * codes.length, height: tall, role: "img",
      "aria-label": codes.map((code, at) => `${store.name(code)} ${number(row.means[at], 2)}`).join(", ") },
      s("line", { x1: 0, x2: step * codes.length, y1: zero, y2: zero, class: "tn-axis" }),
      codes.map((code, at) => {
        const size = Math.max(Math.abs(row.means[at]) * unit, 0.8);
        return s("rect", { x: at * step + 1, width: step - 2.5, height: size, y: row.means[at] >= 0 ? zero - size : zero, rx: 1, fill: readable(store.look(code).colour, dark) },
          s("title", {}, `${store.name(code)}: ${number(row.means[at], 3)}`));
      }));
  };
  const tick = (name, on) => store.set({ ticked: on ? [...store.state.ticked, name] : store.state.ticked.filter((one) => one !== name) });
  const drawTable = (chunk, dark) => {
    const { state } = store, rows = rowsOf(chunk);
    const columns = [["rank", "#"], ["layer", "layer"], ["neuron", "neuron"], ["score", "score"], ...(own() ? [["own", "your text"]] : []), ...chunk.columns.map((name) => [name, name]), ["means", "mean by language"], ["shared", "also of"], ["flags", "flags"]];
    const focus = scroll.contains(document.activeElement) ? document.activeElement.closest("[data-focus]")?.dataset.focus : null;
    const head = h("tr", {}, h("th", { scope: "col" }, h("span", { class: "tn-spoken" }, "tick")), columns.map(([key, name]) => {
      const sorted = by === key;
      if (key === "means") return h("th", { scope: "col" }, h("span", {}, name));
      return h("th", { scope: "col", "aria-sort": sorted ? (down ? "descending" : "ascending") : null, class: ["shared", "flags"].includes(key) ? "" : "tn-number" },
        h("button", { type: "button", "data-focus": key, title: `sort by ${name}`, onclick: () => { [by, down] = [key, sorted ? !down : !["rank", "layer", "neuron"].includes(key)]; update(true); } }, name, sorted && h("span", { "aria-hidden": "true" }, down ? " ↓" : " ↑")));
    }));
    const selected = chunk.rows.some((row) => nameOf(row) === state.neuron) ? state.neuron : nameOf(chunk.rows[0]);
    const body = rows.map((row) => {
      const name = nameOf(row), chosen = name === selected;
      return h("tr", { "aria-selected": String(chosen), tabindex: chosen ? 0 : -1, "data-name": name, "data-focus": name, onclick: (event) => { if (event.target.type !== "checkbox") choose(name); } },
        h("td", {}, h("input", { type: "checkbox", "aria-label": `tick layer ${row.layer}, neuron ${row.neuron}`, checked: state.ticked.includes(name), "data-focus": `tick ${name}`, onchange: (event) => tick(name, event.target.checked) })),
        h("td", { class: "tn-number tn-soft" }, row.rank), h("td", { class: "tn-number" }, row.layer), h("td", { class: "tn-number" }, row.neuron),
        h("td", { class: "tn-number" }, number(row.score, 4)), own() && h("td", { class: "tn-number" }, number(row.own, 2)), row.values.map((value) => h("td", { class: "tn-number" }, number(value, 2))),
        h("td", {}, spark(row, dark)),
        h("td", { class: "tn-dots" }, codes.filter((code) => row.shared.includes(code)).map((code) => swatch(store.look(code), dark)),
          h("span", { class: "tn-spoken" }, row.shared.map((code) => store.name(code)).join(", "))),
        h("td", {}, row.flags.map((flag) => h("span", { class: "tn-flag", title: FLAGS[flag] }, flag)), row.other.length > 0 && h("span", { class: "tn-flag", title: "also in the other type's set" }, "both types")));
    });
    const top = scroll.scrollTop;
    fill(scroll, h("table", { role: "grid", "aria-label": `${about.kinds[state.kind]} neurons of ${store.language.name}`, "aria-rowcount": rows.length }, h("thead", {}, head), h("tbody", {}, body)));
    if (drawnFor === keyOf.neurons(state)) scroll.scrollTop = top;
    drawnFor = keyOf.neurons(state);
    if (!body.some((row) => row.tabIndex === 0) && body[0]) body[0].tabIndex = 0;
    if (focus) scroll.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
    return rows;
  };
  const choose = (name, focus = false) => {
    store.set({ neuron: name }, { undoable: false });
    if (focus) {
      const row = scroll.querySelector(`tr[data-name="${CSS.escape(name)}"]`);
      row?.focus({ preventScroll: true });
      row?.scrollIntoView({ block: "nearest" });
    }
  };
  scroll.addEventListener("keydown", (event) => {
    const row = event.target.closest("tbody tr");
    if (!row) return;
    const next = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling, Home: row.parentNode.firstElementChild, End: row.parentNode.lastElementChild }[event.key];
    if (event.key === "ArrowDown" || event.key === "ArrowUp" || next) {
      event.preventDefault();
      if (next) choose(next.dataset.name, true);
    } else if (event.key === " " && event.target === row) {
      event.preventDefault();
      tick(row.dataset.name, !store.state.ticked.includes(row.dataset.name));
    }
  });
  filter.addEventListener("input", () => update(true));

  // Each token on a ground as strong as the neuron's activation there.
  const strength = (row, values) => Math.max(...row.top.map((one) => Math.abs(one[2])), ...(values ?? []).slice(1).map(Math.abs), 1e-9);
  const spans = (tokens, values, most) => tokens.map((token, place) => {
    const outside = special(token);
    const share = clamp(Math.abs(values[place]) / most, 0, 1);
    return h("span", { class: outside ? "tn-token tn-special" : "tn-token", title: `${token.trim() || "␣"}: ${number(values[place], 2)}`,
      style: outside ? null : `--share:${(100 * share).toFixed(0)}%;--tone:var(${values[place] >= 0 ? "--tn-plus" : "--tn-minus"})` }, outside ? token.replace(/[<>]/g, "") : token);
  });
  const ownStrip = (row) => {
    const said = own(), values = said?.values[nameOf(row)];
    if (!values) return [];
    return [h("h4", {}, "Your text, token by token"), h("div", { class: "tn-strip-head" }, h("span", { class: "tn-of" }, "largest"), h("b", {}, number(peak(row), 2))),
      h("p", { dir: "auto", class: "tn-strip tn-own-strip" }, spans(said.tokens, values, strength(row, values)))];
  };
  const strip = (chunk, row, [language, sentence, value], at) => {
    const values = row.strips[at];
    const tokens = chunk.tokens[`${language}|${sentence}`];
    const shown = tokens && values ? spans(tokens, values, strength(row, values)) : about.train[language][sentence];
    const translation = codes.includes(about.hub) && language !== about.hub ? about.train[about.hub][sentence] : null;
    return h("li", {}, h("div", { class: "tn-strip-head" }, swatch(store.look(language), dark_()), h("span", { class: "tn-of" }, store.name(language)), h("b", {}, number(value, 2))),
      h("p", { lang: language, dir: "auto", class: "tn-strip" }, shown), translation && h("p", { class: "tn-soft tn-translation", lang: about.hub }, translation));
  };
  const dark_ = () => el.closest(".tn-app")?.dataset.theme === "dark";
  const drawCard = (chunk) => {
    const row = chunk.rows.find((one) => nameOf(one) === store.state.neuron) ?? chunk.rows[0];
    if (!row) return fill(card, h("p", {}, "There are no neurons."));
    const ends = row.spread.flat(), low = Math.min(0, ...ends), reach = Math.max(0, ...ends) - low || 1;
    const x = (value) => `${(2 + (96 * (value - low)) / reach).toFixed(2)}%`, wide = (from, to) => `${((96 * (to - from)) / reach).toFixed(2)}%`;
    const box = (code, at) => {
      const [least, lower, middle, upper, largest] = row.spread[at], colour = readable(store.look(code).colour, dark_());
      return s("svg", { class: "tn-box", height: 15, width: "100%", role: "img", "aria-label": `${store.name(code)}: median ${number(middle, 2)}, half of the sentences from ${number(lower, 2)} to ${number(upper, 2)}` },
        s("line", { class: "tn-axis", x1: x(0), x2: x(0), y1: 0, y2: 15 }), s("line", { x1: x(least), x2: x(largest), y1: 7.5, y2: 7.5, stroke: colour, "stroke-width": 1.5 }),
        s("rect", { x: x(lower), width: wide(lower, upper), y: 2.5, height: 10, rx: 1.5, fill: colour, "fill-opacity": 0.45 }), s("line", { x1: x(middle), x2: x(middle), y1: 1, y2: 14, stroke: colour, "stroke-width": 2.5 }));
    };
    const words = (title, list) => list.length > 0 && h("div", { class: "tn-words" }, h("h4", {}, title), h("p", {}, list.map((word) => h("code", {}, word.replace("\n", "⏎")))));
    fill(card, 
      h("h3", {}, `Layer ${row.layer}, neuron ${row.neuron}`),
      h("p", { class: "tn-soft" }, `${about.kinds[store.state.kind]} of ${store.language.name}`, row.score !== null && `, score ${number(row.score, 4)}`, chunk.columns.map((name, at) => `, ${name} ${number(row.values[at], 2)}`).join("")),
      ...ownStrip(row),
      h("h4", {}, "Activation at the token that is read: median, half and 90 % of the sentences; mean"),
      h("div", { class: "tn-means" }, codes.map((code, at) => h("div", {}, h("span", {}, swatch(store.look(code), dark_()), store.name(code)),
        box(code, at), h("b", {}, number(row.means[at], 2))))),
      h("h4", {}, "Strongest sentences, token by token"), h("ul", { class: "tn-strips" }, row.top.map((one, at) => strip(chunk, row, one, at))),
      words("When positive, it raises", row.raises), words("and lowers", row.lowers));
  };
  const drawGroup = () => {
    const { state } = store, kept = about_group.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    about_group.hidden = !state.group;
    if (!state.group) return fill(about_group);
    const circled = state.group.split(";").map((row) => row.split("."));
    const named = circled.map(([code, ...numbers]) => `${store.name(code)} ${numbers.length}`).join(", ");
    fill(about_group, h("p", {}, `Neurons that move ${store.language.name} most towards the mean of the circled test sentences (${named}), untouched.`), h("div", { class: "tn-grow" }), h("div", { class: "tn-icons" },
      h("button", { type: "button", "data-name": "all", title: "measured on test sentences, of which the circled ones set the target", onclick: () => store.set({ size: keyOf.listed(state), view: "evidence", fixed: true }) }, "Switch all of them off"),
      h("button", { type: "button", "data-name": "set", onclick: () => store.set({ group: "" }) }, `Back to the ${about.kinds[state.kind]} set`)));
    if (kept) about_group.querySelector(`[data-name="${kept}"]`)?.focus();
  };
  const update = (table = false) => {
    const { state } = store, chunk = store.chunk(keyOf.neurons(state));
    drawGroup();
    own();
    const flag = (name) => h("button", { type: "button", "aria-pressed": String(wanted.flags.includes(name)), title: FLAGS[name], "data-name": name,
      onclick: () => { wanted.flags = wanted.flags.includes(name) ? wanted.flags.filter((one) => one !== name) : [...wanted.flags, name]; update(true); } }, name);
    const focused = bar.contains(document.activeElement) && document.activeElement !== filter ? document.activeElement.dataset.name : null;
    const typing = document.activeElement === filter;
    fill(bar, filter, h("div", { class: "tn-segments", role: "group", "aria-label": "Flags" },
      h("button", { type: "button", "aria-pressed": String(wanted.here), "data-name": "here", onclick: () => { wanted.here = !wanted.here; update(true); } }, `layer ${state.layer} only`),
      h("button", { type: "button", "aria-pressed": String(wanted.only), "data-name": "only", title: "in no other language's set", onclick: () => { wanted.only = !wanted.only; update(true); } }, "not shared"),
      ...Object.keys(FLAGS).map(flag)), h("div", { class: "tn-grow" }),
      state.ticked.length > 0 && h("div", { class: "tn-icons" },
        h("button", { type: "button", class: "tn-primary", "data-name": "switch", disabled: store.source.offline, title: store.source.offline ? "needs a notebook" : "measure what changes when only these are off",
          onclick: () => store.set({ size: [...state.ticked].join(","), view: "evidence", fixed: true }) }, `Switch these ${state.ticked.length} off`),
        h("button", { type: "button", "data-name": "clear", onclick: () => store.set({ ticked: [] }) }, "Clear")));
    if (typing) filter.focus();
    if (focused) bar.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
    if (!chunk) {
      el.classList.add("tn-stale");
      if (!scroll.firstChild) fill(scroll, h("p", { class: "tn-wait" }, store.source.offline ? "This page holds no neurons of this set." : "Measuring neurons …"));
      return;
    }
    el.classList.remove("tn-stale");
    const rows = drawTable(chunk, dark_());
    if (document.activeElement !== area && area.value.trim() !== state.own && state.own) area.value = state.own;
    fill(foot, h("span", { class: "tn-soft" }, `${rows.length} of ${chunk.rows.length} neurons, on training sentences. `, "Space ticks a row."),
      ...about.languages.map((one) => h("span", { class: "tn-chip tn-plain" }, swatch(one, dark_()), one.name)));
    drawCard(chunk);
  };
  return {
    el, update: () => update(), close() {},
    rows() {
      const chunk = store.data.get(keyOf.neurons(store.state));
      if (!chunk) return null;
      return [["rank", "layer", "neuron", "score", ...chunk.columns, ...codes.map((code) => `mean ${code}`), "also of", "flags"],
        ...rowsOf(chunk).map((row) => [row.rank, row.layer, row.neuron, row.score, ...row.values, ...row.means, row.shared.join(" "), row.flags.join("; ")])];
    },
  };
};
