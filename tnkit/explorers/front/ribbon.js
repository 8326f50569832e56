// The layers, always in sight: retrieval, distance and neurons by layer, and the layer that every view shows.

const RIBBON = { top: 20, bottom: 22, left: 14, right: 14, height: 128 };

const makeRibbon = (store) => {
  const svg = s("svg", { class: "tn-ribbon-plot", tabindex: 0, role: "slider", "aria-label": "Layer",
    "aria-valuemin": 0, "aria-valuemax": store.about.layers - 1, "data-lm-suppress-shortcuts": "true" });
  const legend = h("div", { class: "tn-ribbon-legend" });
  const play = h("button", { type: "button", class: "tn-play", title: "Play through the layers" }, "▶");
  const readout = h("output", { class: "tn-layer" });
  const el = h("section", { class: "tn-ribbon", "aria-label": "Layers" },
    h("div", { class: "tn-ribbon-head" }, readout, play, legend), svg);
  let width = 0, timer = null;

  const x = (layer) => RIBBON.left + ((width - RIBBON.left - RIBBON.right) * (layer + 0.5)) / store.about.layers;
  const y = (share) => RIBBON.height - RIBBON.bottom - share * (RIBBON.height - RIBBON.bottom - RIBBON.top);
  const line = (values, scale = (value) => value, first = 0) =>
    `M${values.map((value, at) => `${x(at).toFixed(1)} ${y(scale(value)).toFixed(1)}`).slice(first).join("L")}`;
  const move = (layer) => store.set({ layer: clamp(layer, 0, store.about.layers - 1) });

  const pointer = (event) => {
    const box = svg.getBoundingClientRect();
    const share = (event.clientX - box.left - RIBBON.left) / (box.width - RIBBON.left - RIBBON.right);
    move(Math.floor(share * store.about.layers));
  };
  svg.addEventListener("pointerdown", (event) => {
    store.step();
    svg.setPointerCapture(event.pointerId);
    svg.focus({ preventScroll: true });
    pointer(event);
  });
  svg.addEventListener("pointermove", (event) => svg.hasPointerCapture(event.pointerId) && pointer(event));
  svg.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 4, PageDown: -4, Home: -999, End: 999 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    move(store.state.layer + steps[event.key]);
  });
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "▶"; play.setAttribute("aria-label", "Play through the layers"); };
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "Pause");
    if (store.state.layer === store.about.layers - 1) move(0);
    timer = setInterval(() => (store.state.layer === store.about.layers - 1 ? stop() : move(store.state.layer + 1)), 550);
  });
  stop();

  const band = ([from, to], text, name) => [
    s("rect", { class: `tn-band ${name}`, x: x(from - 0.5), y: RIBBON.top - 14, width: x(to + 0.5) - x(from - 0.5), height: RIBBON.height - RIBBON.bottom - RIBBON.top + 14 }),
    s("text", { class: "tn-band-name", x: x(from - 0.5) + 6, y: RIBBON.top - 3 }, text)];

  const draw = () => {
    const { about, state } = store;
    const sets = store.data.get("sets")?.[`${state.language}|${state.kind}`];
    const off = store.data.get(keyOf.off(state, state.language));
    const values = store.data.get("ribbon")?.[state.language];
    const parts = [...band(about.early, "early", "tn-early"), ...band(about.late, "late", "tn-late")];
    if (sets) {
      const most = Math.max(...sets.layers, 1);
      const bar = (x(1) - x(0)) * 0.56;
      parts.push(s("g", { class: "tn-bars" }, sets.layers.map((count, layer) => count > 0 &&
        s("rect", { x: x(layer) - bar / 2, width: bar, y: y((0.6 * count) / most), height: y(0) - y((0.6 * count) / most), rx: 1.5 }))));
    }
    if (values) {
      const far = Math.max(...values.distance, 1e-9);
      parts.push(s("path", { class: "tn-line tn-distance", d: line(values.distance, (value) => value / far) }));
      parts.push(s("path", { class: "tn-line tn-raw", d: line(values.raw) }));
      parts.push(s("path", { class: "tn-line tn-centred", d: line(values.centred) }));
      if (off) parts.push(s("path", { class: "tn-line tn-set", d: line(off.set.centred, (value) => value, off.first) }));
      parts.push(...[["tn-raw", values.raw], ["tn-centred", values.centred]].map(([name, shares]) =>
        s("circle", { class: `tn-dot ${name}`, cx: x(state.layer), cy: y(shares[state.layer]), r: 3.4 })));
      if (off && state.layer >= off.first) parts.push(s("circle", { class: "tn-dot tn-set", cx: x(state.layer), cy: y(off.set.centred[state.layer]), r: 3.4 }));
    }
    const every = about.layers > 40 ? 4 : width < 560 && about.layers > 20 ? 2 : 1;
    parts.push(s("line", { class: "tn-axis", x1: RIBBON.left, x2: width - RIBBON.right, y1: y(0), y2: y(0) }));
    for (let layer = 0; layer < about.layers; layer++) {
      if (layer % every && layer !== state.layer) continue;
      parts.push(s("text", { class: layer === state.layer ? "tn-tick tn-here" : "tn-tick", x: x(layer), y: RIBBON.height - 6 }, layer));
    }
    parts.splice(4, 0, s("rect", { class: "tn-cursor", x: x(state.layer - 0.5), width: x(0.5) - x(-0.5), y: RIBBON.top - 14, height: RIBBON.height - RIBBON.top + 12, rx: 4 }));
    fill(svg, ...parts);
    const share = (shares) => (shares ? percent(shares[state.layer]) : "…"); // which are on their way
    const said = values ? `layer ${state.layer}: ${percent(values.centred[state.layer])} of ${store.language.name} translations found, mean-centred; ${percent(values.raw[state.layer])} raw` : `layer ${state.layer}`;
    svg.setAttribute("aria-valuenow", state.layer);
    svg.setAttribute("aria-valuetext", said);
    fill(readout, h("b", {}, `Layer ${state.layer}`), h("span", {}, ` of ${about.layers - 1}`));
    const item = (name, text, value) => h("span", { class: "tn-key" }, h("i", { class: name }), text, h("b", {}, value));
    const far = values?.distance[state.layer];
    fill(legend,
      item("tn-centred", "translations found, mean-centred", share(values?.centred)),
      off && item("tn-set", `with ${about.kinds[state.kind]} off`, state.layer < off.first ? `from layer ${off.first}` : share(off.set.centred)),
      item("tn-raw", "raw", share(values?.raw)),
      item("tn-distance", "distance of centroids", far === undefined ? "…" : number(far, far < 0.01 ? 4 : 3)),
      item("tn-bars", `${about.kinds[state.kind]} neurons`, sets ? String(sets.layers[state.layer]) : "…"));
  };
  const watch = new ResizeObserver(() => {
    width = svg.clientWidth;
    svg.setAttribute("viewBox", `0 0 ${width} ${RIBBON.height}`);
    if (width) draw();
  });
  watch.observe(svg);
  return {
    el, update() { store.chunk("ribbon"); store.chunk("sets"); if (width) draw(); },
    close() { watch.disconnect(); stop(); },
  };
};
