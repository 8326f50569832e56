// Where each language's neurons sit, by which score they were chosen, and how many languages share them.

const makeDetection = (store) => {
  const { about } = store;
  const grid = h("div", { class: "tn-grid" });
  const form = makeForm(store);
  const card = h("aside", { class: "tn-card", tabindex: 0, "aria-label": "Detection" });
  const el = h("div", { class: "tn-view tn-detection" }, h("div", { class: "tn-main" }, !store.source.offline && form.el, grid), h("div", { class: "tn-side" }, card));
  const others = about.languages.filter((one) => one.code !== about.hub);
  const dark = () => el.closest(".tn-app")?.dataset.theme === "dark";

  const bars = (counts, most, colour) => {
    const wide = 200, tall = 76, step = wide / counts.length;
    return s("svg", { viewBox: `0 0 ${wide} ${tall + 14}`, class: "tn-mini", role: "img", "aria-label": `neurons by layer: ${counts.join(", ")}` },
      s("line", { class: "tn-axis", x1: 0, x2: wide, y1: tall, y2: tall }),
      s("rect", { class: "tn-cursor", x: store.state.layer * step, width: step, y: 0, height: tall + 14, rx: 2 }),
      counts.map((count, layer) => count > 0 && s("rect", { x: layer * step + step * 0.14, width: step * 0.72, y: tall - (tall - 4) * (count / most), height: (tall - 4) * (count / most), rx: 1.2, fill: colour }, s("title", {}, `layer ${layer}: ${count}`))),
      [0, counts.length - 1].map((layer) => s("text", { class: "tn-tick", x: layer * step + step / 2, y: tall + 12 }, layer)));
  };
  const distribution = (set) => {
    const wide = 330, tall = 120, step = wide / set.all.length;
    const most = Math.log1p(Math.max(...set.all)), size = (count) => ((tall - 6) * Math.log1p(count)) / most;
    const place = (value) => (wide * (value - set.edges[0])) / (set.edges.at(-1) - set.edges[0]);
    return s("svg", { viewBox: `0 0 ${wide} ${tall + 18}`, class: "tn-mini", role: "img", "aria-label": `distribution of ${set.candidates} scores; the set begins at ${number(set.lowest, 4)}` },
      set.all.map((count, at) => s("rect", { class: "tn-all", x: at * step, width: step - 0.6, y: tall - size(count), height: size(count) })),
      set.chosen.map((count, at) => count > 0 && s("rect", { class: "tn-picked", x: at * step, width: step - 0.6, y: tall - size(count), height: size(count) })),
      s("line", { class: "tn-axis", x1: 0, x2: wide, y1: tall, y2: tall }),
      [set.edges[0], 0, set.edges.at(-1)].filter((value, at, all) => at !== 1 || (place(value) > 46 && place(value) < wide - 46)).map((value) =>
        s("text", { class: "tn-tick", x: clamp(place(value), 20, wide - 20), y: tall + 14 }, number(value, 3))));
  };
  const update = () => {
    const { state } = store, sets = store.chunk("sets");
    form.update();
    if (!sets) return fill(grid, h("p", { class: "tn-wait" }, "Finding neurons …"));
    const most = Math.max(...Object.values(sets).flatMap((set) => set.layers));
    const focused = grid.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    fill(grid, ...Object.entries(about.kinds).map(([kind, name]) => h("section", {},
      h("h3", {}, name, h("span", { class: "tn-soft" }, kind === "type1" ? " towards the shared centroid, early layers" : " towards the language's own centroid, late layers")),
      h("div", { class: "tn-minis" }, others.map((one) => {
        const set = sets[`${one.code}|${kind}`], here = state.language === one.code && state.kind === kind;
        return h("button", { type: "button", class: "tn-tile", "data-key": `${one.code}|${kind}`, "aria-pressed": String(here), onclick: () => store.set({ language: one.code, kind }) },
          h("span", { class: "tn-tile-head" }, swatch(one, dark()), one.name, h("span", { class: "tn-soft" }, `score ≥ ${number(set.lowest, 4)}`)), bars(set.layers, most, readable(one.colour, dark())));
      })))));
    if (focused) grid.querySelector(`[data-key="${focused}"]`)?.focus();
    const set = sets[`${state.language}|${state.kind}`];
    fill(card, 
      h("h3", {}, `${about.kinds[state.kind]} neurons of ${store.language.name}`),
      h("dl", { class: "tn-facts" }, h("dt", {}, "Chosen"), h("dd", {}, `${about.size} of ${set.candidates.toLocaleString("en")}`), h("dt", {}, "Searched"), h("dd", {}, `layers ${set.searched[0]} to ${set.searched[1]}`),
        h("dt", {}, "Score"), h("dd", {}, `${set.score}, ${set.distance} distance`), h("dt", {}, "Scores of the set"), h("dd", {}, `${number(set.lowest, 4)} to ${number(set.highest, 4)}`), h("dt", {}, "Token"), h("dd", {}, about.position)),
      h("h4", {}, "All scores, and those of the set"), distribution(set), h("p", { class: "tn-soft" }, "Heights are logarithmic."),
      h("h4", {}, "Neurons shared with other languages"),
      h("div", { class: "tn-means" }, others.filter((one) => one.code !== state.language).map((one) => h("div", {}, h("span", {}, swatch(one, dark()), one.name),
        h("i", { style: `--size:${(100 * set.shared[one.code]) / about.size}%;--tone:${readable(one.colour, dark())}` }), h("b", {}, set.shared[one.code])))));
  };
  return {
    el, update, close() {},
    rows() {
      const sets = store.data.get("sets");
      if (!sets) return null;
      return [["language", "type", "layer", "neurons"], ...Object.entries(sets).flatMap(([key, set]) => set.layers.map((count, layer) => [...key.split("|"), layer, count]))];
    },
  };
};
