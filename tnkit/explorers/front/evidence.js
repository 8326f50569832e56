// What changes when the set is off, beside its controls: by layer from the first ablated one, and at one fixed layer.

const CONDITIONS = { none: "nothing off", "the set": "the set off" };

const makeEvidence = (store) => {
  const { about } = store;
  const bar = h("div", { class: "tn-tools-row" });
  const lines = s("svg", { class: "tn-chart", role: "img" });
  const forest = h("div", { class: "tn-forest" });
  const head = h("div", { class: "tn-headline" });
  const note = h("p", { class: "tn-soft tn-note" });
  const chart = h("div", { class: "tn-panel tn-chart-panel" }, h("h3", {}, "By layer"), lines);
  const table = h("div", { class: "tn-panel" }, forest, note);
  const prompt = makePrompt(store);
  const measures = h("div", { class: "tn-measures" }, bar, head, h("div", { class: "tn-split" }, table, chart));
  const el = h("div", { class: "tn-view tn-evidence" }, measures, !store.source.offline && prompt.el);
  let last = null, width = 0;

  const label = (name) => name === "the set" ? `${about.kinds[store.state.kind]} set ${verb()}` : name === "none" ? "nothing off" : name;
  const verb = () => (store.state.value === "zero" ? "off" : `at ${store.state.value}`);
  const role = (name) => (name === "none" ? "untouched" : name === "the set" ? "set" : name === "the set at its mean" ? "mean" : "control");
  const chosenMeasure = (chunk) => (chunk.measures[store.state.measure] ? store.state.measure : Object.keys(chunk.measures)[0]);
  const sorted = (measure) => {
    const rank = (row) => (row.name === "none" ? 0 : row.name === "the set" ? 1 : row.name === "the set at its mean" ? 2 : row.seeds > 1 ? 3 : 4);
    return [...measure.conditions].sort((a, b) => rank(a) - rank(b));
  };
  const isShare = (key) => key === "retrieval" || key === "mutual_knn";
  const p = (value) => (value === null ? "–" : value <= 0.00011 ? "≤ 0.0001" : value.toFixed(4));

  const drawLines = (measure) => {
    const layers = measure.layers, H = 300, left = 46, right = 14, top = 14, bottom = 34;
    const from = about.layers === 1 ? 0 : layers[0], to = layers.at(-1);
    const all = measure.conditions.flatMap((row) => [...row.low, ...row.high]).filter((value) => value !== null);
    const [low, high] = [Math.min(...all), Math.max(...all)], room = (high - low || 1) * 0.05;
    const x = (layer) => left + ((width - left - right) * (layer - from + 0.5)) / (to - from + 1);
    const y = (value) => top + (H - top - bottom) * (1 - (value - low + room) / (high - low + 2 * room));
    const steps = 5, rough = (high - low) / steps || 0.1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
    const parts = [];
    for (let value = Math.ceil(low / step) * step; value <= high + 1e-9; value += step)
      parts.push(s("line", { class: "tn-gridline", x1: left, x2: width - right, y1: y(value), y2: y(value) }), s("text", { class: "tn-tick tn-left", x: left - 8, y: y(value) + 4 }, number(value, step < 0.01 ? 3 : step < 0.1 ? 2 : step < 1 ? 1 : 0)));
    for (const layer of layers) parts.push(s("text", { class: `tn-tick ${layer === at(measure) ? "tn-here" : ""}`, x: x(layer), y: H - 14 }, layers.length > 20 && layer % 2 ? "" : layer));
    parts.push(s("line", { class: "tn-fixed", x1: x(at(measure)), x2: x(at(measure)), y1: top, y2: H - bottom }));
    const rows = sorted(measure), order = [...rows.filter((row) => role(row.name) === "control"), ...rows.filter((row) => role(row.name) !== "control").reverse()];
    for (const row of order) {
      const name = `tn-role-${role(row.name)}`;
      const band = [...row.low.map((value, n) => [x(layers[n]), y(value)]), ...row.high.map((value, n) => [x(layers[n]), y(value)]).reverse()];
      if (role(row.name) !== "control") parts.push(s("path", { class: `tn-interval ${name}`, d: `M${band.map((one) => one.map((v) => v.toFixed(1)).join(" ")).join("L")}Z` }));
      parts.push(s("path", { class: `tn-line ${name}`, d: `M${row.mean.map((value, n) => `${x(layers[n]).toFixed(1)} ${y(value).toFixed(1)}`).join("L")}` }, s("title", {}, label(row.name))));
    }
    lines.setAttribute("viewBox", `0 0 ${width} ${H}`);
    lines.setAttribute("aria-label", `${measure.name} by layer; the table holds its values at layer ${at(measure)}`);
    fill(lines, ...parts);
    fill(chart.querySelector("h3"), measure.name, h("span", { class: "tn-soft" }, ` by layer, from layer ${layers[0]}, the first in which neurons are off`));
  };
  const at = (measure) => {
    if (measure.layers.length === 1) return measure.layers[0];
    const wanted = store.state.fixed ? measure.chosen : store.state.layer;
    return clamp(wanted, measure.layers[0], measure.layers.at(-1));
  };
  const drawForest = (key, measure) => {
    const layer = at(measure), n = measure.layers.indexOf(layer), rows = sorted(measure);
    const values = rows.flatMap((row) => [row.low[n], row.high[n]]).filter((value) => value !== null);
    let [low, high] = [Math.min(...values), Math.max(...values)];
    if (isShare(key)) [low, high] = [0, 1];
    const pad = (high - low || 1) * 0.06, x = (value) => (100 * (value - low + pad)) / (high - low + 2 * pad);
    const digits = 3;
    const head_ = ["condition", "draws", "", "mean", "95 % interval", "set − this", "95 % interval", "p, sentences", "p, sets"];
    const body = rows.map((row) => {
      const name = role(row.name), own = row.name === "the set";
      return h("tr", { class: `tn-role-${name}` }, h("th", { scope: "row" }, h("i", {}), label(row.name)), h("td", { class: "tn-number" }, row.seeds > 1 ? row.seeds : "1"),
        h("td", { class: "tn-plot" }, s("svg", { width: "100%", height: 20, "aria-hidden": "true" },
          s("line", { class: "tn-base", x1: `${x(rows[0].mean[n])}%`, x2: `${x(rows[0].mean[n])}%`, y1: 0, y2: 20 }),
          s("line", { class: "tn-whisker", x1: `${x(row.low[n])}%`, x2: `${x(row.high[n])}%`, y1: 10, y2: 10 }), s("circle", { cx: `${x(row.mean[n])}%`, cy: 10, r: own ? 5 : 4 }))),
        h("td", { class: "tn-number" }, number(row.mean[n], digits)), h("td", { class: "tn-number tn-soft" }, `${number(row.low[n], digits)} – ${number(row.high[n], digits)}`),
        own ? h("td", { class: "tn-number" }, "") : h("td", { class: "tn-number" }, number(row.effect[n], digits)), own ? h("td", {}) : h("td", { class: "tn-number tn-soft" }, `${number(row.effect_low[n], digits)} – ${number(row.effect_high[n], digits)}`),
        h("td", { class: "tn-number tn-soft" }, own ? "" : p(row.p_sentences[n])), h("td", { class: "tn-number tn-soft" }, own ? "" : p(row.p_sets[n])));
    });
    const where = measure.layers.length === 1 ? "" : ` at layer ${layer}`;
    fill(forest, h("h3", {}, `${measure.name}${where}`), h("div", { class: "tn-scroll", tabindex: 0, role: "region", "aria-label": "Conditions" },
      h("table", {}, h("thead", {}, h("tr", {}, head_.map((name, at_) => h("th", { scope: "col", class: at_ === 0 || at_ === 2 ? "" : "tn-number" }, name || h("span", { class: "tn-spoken" }, "drawn"))))), h("tbody", {}, body))));
    note.textContent = `n = ${measure.sentences} ${measure.layers.length === 1 ? "test sentences; every token is changed" : `test sentences that found no neuron; ${last.scope === "all" ? "every token is" : "the last token is"} changed`}. Intervals: bootstrap over sentences and draws. p, sentences: these very sets, sign flips of each sentence's difference. p, sets: the set among the draws of a random control, at least 1 / (1 + draws).`
      + (measure.layers.length > 1 ? (store.state.fixed ? ` Layer ${layer} was chosen on ${measure.chosen_on}.` : " This layer was chosen by looking: the p-values are not corrected for that.") : "");
    const by = Object.fromEntries(rows.map((row) => [row.name, row]));
    const rivals = rows.filter((row) => role(row.name) === "control" && row.seeds > 1).map((row) => row.mean[n]);
    const big = (value) => (isShare(key) ? percent(value) : number(value, 3));
    fill(head, 
      h("div", { class: "tn-role-untouched" }, h("b", {}, big(by.none.mean[n])), h("span", {}, "nothing off")),
      h("div", { class: "tn-role-set" }, h("b", {}, big(by["the set"].mean[n])), h("span", {}, `the set ${verb()}`)),
      by["the set at its mean"] && h("div", { class: "tn-role-mean" }, h("b", {}, big(by["the set at its mean"].mean[n])), h("span", {}, "the set at its mean")),
      rivals.length > 0 && h("div", { class: "tn-role-control" }, h("b", {}, Math.min(...rivals) === Math.max(...rivals) ? big(rivals[0]) : `${big(Math.min(...rivals))} – ${big(Math.max(...rivals))}`), h("span", {}, "random controls off")),
      h("p", {}, sentence(key, measure, layer, by, n)));
  };
  const sentence = (key, measure, layer, by, n) => {
    const language = store.language.name, size = last.size;
    const what = key === "retrieval" ? `of ${measure.sentences} ${language} sentences, the share whose ${store.name(about.hub)} translation is the nearest, each language's mean taken away first`
      : key.startsWith("nats") ? `${measure.name}: lower is better predicted` : measure.name;
    return `${size} ${about.kinds[store.state.kind]} neurons of ${language}${measure.layers.length > 1 ? `, layer ${layer}` : ""}: ${what}.`;
  };

  const update = () => {
    const { state } = store;
    if (!store.source.offline) prompt.update(); // first, for it takes seconds
    const chunk = store.chunk(keyOf.evidence(state));
    last = chunk ?? last;
    measures.classList.toggle("tn-stale", !chunk && Boolean(last));
    if (!last) {
      fill(bar);
      fill(head, h("p", { class: "tn-wait" }, store.source.offline ? "This page holds no evidence for this set; open the explorer in a notebook." : "Measuring the set and its controls …"));
      chart.hidden = table.hidden = true;
      return;
    }
    if (!chunk) return;
    chart.hidden = table.hidden = false;
    const key = chosenMeasure(chunk), measure = chunk.measures[key];
    const focused = bar.contains(document.activeElement) ? [...bar.querySelectorAll("button, select")].indexOf(document.activeElement) : -1;
    fill(bar, !store.source.offline && chooser("Changed at", SCOPES, state.scope, (scope) => store.set({ scope }), { "data-name": "scope" }), segments("Measure", Object.entries(chunk.measures).map(([name, one]) => [name, one.name]), key, (name) => store.set({ measure: name })),
      h("div", { class: "tn-grow" }),
      measure.layers.length > 1 && segments("Layer of the table", [[true, `layer ${measure.chosen}, chosen on ${measure.chosen_on}`], [false, `layer ${clamp(state.layer, measure.layers[0], measure.layers.at(-1))}, of the ribbon`]], state.fixed, (fixed) => store.set({ fixed })));
    if (focused >= 0) bar.querySelectorAll("button, select")[focused]?.focus();
    chart.hidden = measure.layers.length === 1;
    el.querySelector(".tn-split").classList.toggle("tn-one", chart.hidden);
    drawForest(key, measure);
    if (width && !chart.hidden) drawLines(measure);
  };
  const watch = new ResizeObserver(() => {
    if (lines.clientWidth && lines.clientWidth !== width) { width = lines.clientWidth; update(); store.ask(); }
  });
  watch.observe(chart);
  return {
    el, update, close() { watch.disconnect(); },
    rows() {
      const chunk = store.data.get(keyOf.evidence(store.state));
      if (!chunk) return null;
      const rows = [["measure", "layer", "condition", "draws", "n", "mean", "low", "high", "set - this", "low", "high", "p sentences", "p sets"]];
      for (const measure of Object.values(chunk.measures)) for (const row of measure.conditions)
        measure.layers.forEach((layer, n) => rows.push([measure.name, layer, row.name, row.seeds, measure.sentences, row.mean[n], row.low[n], row.high[n], row.effect[n], row.effect_low[n], row.effect_high[n], row.p_sentences[n], row.p_sets[n]]));
      return rows;
    },
  };
};
