// The application: header, ribbon and one of four views, for a notebook's widget and for a page without a kernel.

const CANCELLED = "Cancelled.", STALE = "Still showing the previous choice.";
const SILENT = "Waiting for the kernel, which is busy. If it has died or was restarted, run this cell again.";
const VIEWS = { map: ["Map", makeMap], neurons: ["Neurons", makeNeurons], evidence: ["Evidence", makeEvidence], detection: ["Detection", makeDetection] };

const mount = (root, about, source, given) => {
  const store = new Store(about, source, given);
  const status = h("div", { class: "tn-state", role: "status" });
  const controls = h("div", { class: "tn-controls-row" });
  const undo = h("button", { type: "button", onclick: () => store.undo() }, "Undo");
  const reset = h("button", { type: "button", onclick: () => store.set({ ...store.first, view: store.state.view }) }, "Reset");
  const copy = h("button", { type: "button", title: "Python that opens this very view" }, "Copy as code");
  const table = h("button", { type: "button", title: "the numbers of this view" }, "CSV");
  const picture = h("button", { type: "button", title: "the map or chart of this view" }, "Save picture");
  const tabs = h("div", { class: "tn-tabs", role: "tablist", "aria-label": "Views" });
  const body = h("div", { class: "tn-body", role: "tabpanel" });
  const ribbon = makeRibbon(store);
  const count = about.test[about.hub].length;
  const app = h("div", { class: "tn-app", lang: "en" },
    h("div", { class: "tn-head" },
      h("div", { class: "tn-brand" }, h("h2", {}, "Transfer neurons"), h("p", {}, [about.model, about.corpus, `${count} test sentences`, `${store.name(about.hub)} as hub`, about.form.positions[about.position] ?? about.position, `${about.form.score} ${about.form.distance} scores`].join("  ·  "))),
      h("div", { class: "tn-icons" }, undo, reset, copy, table, picture)),
    h("div", { class: "tn-bar" }, tabs, controls), ribbon.el, status, body);
  fill(root, app);
  const views = {};
  let shown = null;

  const stem = () => [about.model.split("/").at(-1), store.state.view, `layer-${store.state.layer}`, store.state.language, store.state.kind].join("-");
  const flash = (button, text) => { const before = button.textContent; button.textContent = text; setTimeout(() => (button.textContent = before), 1400); };
  copy.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(store.code()); flash(copy, "Copied"); } catch {
      const area = h("textarea", {}, store.code()); app.append(area); area.select(); document.execCommand("copy"); area.remove(); flash(copy, "Copied");
    }
    app.dataset.code = store.code();
  });
  table.addEventListener("click", () => { const rows = views[shown].rows(); if (rows) download(`${stem()}.csv`, "\ufeff" + csv(rows), "text/csv"); else flash(table, "Not yet"); });
  picture.addEventListener("click", async () => {
    if (shown === "map") return download(`${stem()}.png`, await views.map.png(), "image/png");
    const chart = body.querySelector(".tn-chart-panel:not([hidden]) svg, .tn-tile[aria-pressed=true] svg, .tn-card svg.tn-mini") ?? ribbon.el.querySelector("svg");
    download(`${stem()}.svg`, standalone(chart, store), "image/svg+xml");
  });

  const tab = (name) => h("button", { type: "button", role: "tab", "aria-selected": String(store.state.view === name), tabindex: store.state.view === name ? 0 : -1, "data-view": name,
    onclick: () => store.set({ view: name }),
    onkeydown: (event) => {
      const names = Object.keys(VIEWS), by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      store.set({ view: names[(names.indexOf(name) + by + names.length) % names.length] });
      tabs.querySelector("[aria-selected=true]").focus();
    } }, VIEWS[name][0]);

  const drawControls = () => {
    const { state } = store, focused = controls.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    const named = String(state.size).includes("@") ? `${state.count} towards your circle` : `${String(state.size).split(",").length} ticked`;
    const sizes = [...(isCount(state.size) ? [] : [[state.size, named]]), ...(about.sizes.includes(Number(state.size)) || !isCount(state.size) ? [] : [[state.size, String(state.size)]]), ...about.sizes.map((size) => [size, String(size)])];
    const pick = (name, convert = (value) => value) => (value) => store.set({ [name]: convert(value) });
    const field = (name, label, options, current, act) => source.offline && options.length < 2
      ? h("span", { class: "tn-field" }, h("span", {}, label), h("b", {}, options[0]?.[1]))
      : chooser(label, options, current, act, { "data-name": name });
    fill(controls, 
      field("language", "Language", about.languages.filter((one) => one.code !== about.hub).map((one) => [one.code, `${one.name} – ${store.name(about.hub)}`]), state.language, pick("language")),
      field("kind", "Type", Object.entries(about.kinds), state.kind, pick("kind")),
      field("size", "Neurons", sizes, state.size, (value) => store.set(isCount(value) ? { size: Number(value), count: Number(value) } : { size: value })),
      field("value", "Set to", about.values.map((value) => [value, value]), state.value, pick("value")),
      field("control", "Control", about.controls.map((value) => [value, value]), state.control, pick("control")));
    if (focused) controls.querySelector(`[data-name="${focused}"]`)?.focus();
  };
  // Made once: a button that is replaced at every message cannot be pressed.
  const spinner = h("i", { class: "tn-spinner", "aria-hidden": "true" }), bar = h("progress", { "aria-label": "Progress" }), words = h("span", {});
  const stop = h("button", { type: "button", onclick: () => source.cancel() }, "Cancel"), again = h("button", { type: "button", onclick: () => store.retry() }, "Try again");
  const drawStatus = () => {
    const { text, said, gone, job } = store.status, pending = !source.offline && (store.asked !== "" || job);
    const failed = store.status.failed || (pending ? "" : store.failing);
    const [, done, total] = text.match(/(\d+) of (\d+)/) ?? [];
    bar.hidden = !total;
    if (total) { bar.max = total; bar.value = Math.min(done, total); }
    const also = (sentence) => (body.querySelector(".tn-stale") ? `${sentence.replace(/([^.…])$/, "$1.")} ${STALE}` : sentence);
    app.dataset.state = gone ? "gone" : failed ? "error" : pending ? "computing" : store.waiting ? "waiting" : "idle";
    const told = gone ? also("The kernel that computed this is gone: run this cell again. What has been computed can still be looked at.")
      : failed ? also(failed) : pending ? also(text === SILENT ? text : `${text || "computing"} …`) : said;
    words.className = gone || (failed && failed !== CANCELLED) ? "tn-error" : "";
    if (failed && !gone) words.setAttribute("role", "alert"); else words.removeAttribute("role");
    if (words.textContent !== (told || "")) words.textContent = told || "";
    const shows = gone ? [words] : failed ? [words, again] : pending ? [spinner, bar, words, stop] : told ? [words] : [];
    if (shows.length !== status.childNodes.length || shows.some((node, at) => node !== status.childNodes[at])) fill(status, shows);
  };
  const update = () => {
    const { state } = store;
    app.dataset.theme = theme();
    app.dataset.view = state.view;
    if (shown !== state.view) {
      const kept = tabs.contains(document.activeElement);
      shown = state.view;
      views[shown] ??= VIEWS[shown][1](store);
      fill(body, views[shown].el);
      fill(tabs, ...Object.keys(VIEWS).map(tab));
      if (kept) tabs.querySelector("[aria-selected=true]").focus();
      body.setAttribute("aria-label", VIEWS[shown][0]);
    }
    undo.disabled = !store.past.length;
    store.failing = "";
    drawControls();
    views[shown].update();
    ribbon.update();
    store.ask();
    drawStatus();
    source.show?.();
  };
  const theme = () => {
    const light = document.body.dataset.jpThemeLight ?? document.documentElement.dataset.jpThemeLight;
    if (light) return light === "false" ? "dark" : "light";
    return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  };
  const query = matchMedia("(prefers-color-scheme: dark)"), watch = new MutationObserver(() => update());
  query.addEventListener("change", update);
  watch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  app.addEventListener("keydown", (event) => {
    const command = event.ctrlKey || event.metaKey, undoes = command && event.key === "z";
    if (undoes || (!command && !event.altKey && !(event.shiftKey && event.key === "Enter"))) event.stopPropagation(); // or B adds a cell, and X cuts one
    if (undoes && !["INPUT", "TEXTAREA"].includes(event.target.tagName)) { event.preventDefault(); store.undo(); }
  });
  store.listeners.add(update);
  update();
  return {
    store, update, drawStatus,
    close() { query.removeEventListener("change", update); watch.disconnect(); ribbon.close(); Object.values(views).forEach((view) => view.close()); },
  };
};

// A chart as a file, with the colours that it has here.
const standalone = (chart, store) => {
  const copy = chart.cloneNode(true), box = chart.getBoundingClientRect();
  const from = [chart, ...chart.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
  from.forEach((node, at) => {
    const style = getComputedStyle(node);
    for (const name of ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-weight", "font-family", "text-anchor"])
      to[at].setAttribute(name, style.getPropertyValue(name));
  });
  copy.setAttribute("xmlns", SVG_NS);
  copy.setAttribute("width", box.width);
  copy.setAttribute("height", box.height);
  copy.prepend(s("desc", {}, JSON.stringify({ model: store.about.model, corpus: store.about.corpus, tnkit: store.about.tnkit, ...store.state })));
  return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(copy)}`;
};

// In a notebook: chunks come from the kernel, the one that is looked at first.
const render = ({ model, el }) => {
  let timer = null, patience = null, mounted = null;
  const send = (message) => { // again where nothing comes back, since the kernel does nothing twice
    model.send(message);
    clearTimeout(patience);
    patience = setTimeout(() => {
      const { status } = mounted.store;
      status.text = SILENT;
      mounted.drawStatus();
      if (!status.gone) send(message);
    }, 10000);
  };
  const source = {
    offline: false, visible: false,
    request(keys) { send({ ask: "chunks", keys }); },
    cancel() { send({ ask: "cancel" }); },
    find(options) { send({ ask: "found", options }); },
    save() { send({ ask: "save" }); },
    show() {
      clearTimeout(timer);
      timer = setTimeout(push, 300);
    },
  };
  const push = () => { // what is shown, to the kernel and the other displays
    const { state } = mounted.store;
    if (JSON.stringify(model.get("state")) === JSON.stringify(state)) return;
    model.set("state", state);
    model.save_changes();
  };
  const start = () => { // also when a detection has made another study
    const focused = el.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    const gone = mounted?.store.status.gone ?? false;
    mounted?.close();
    mounted = mount(el, model.get("about"), source, model.get("state"));
    mounted.store.status.gone = gone;
    if (focused) el.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
  };
  start();
  const hear = (message) => {
    clearTimeout(patience);
    const { store } = mounted, { status } = store;
    if (message.forget) return store.forget();
    if (message.key && message.chunk) return store.receive(message.key, message.chunk);
    if (message.key && "failed" in message && store.asking.includes(message.key)) store.refused.set(message.key, message.failed);
    else if ("failed" in message) status.failed = message.failed;
    for (const key of message.cancelled ?? []) { store.refused.set(key, CANCELLED); status.said = CANCELLED; }
    if ("said" in message) status.said = message.said;
    if ("status" in message) status.text = message.status;
    if (message.done) {
      store.asked = status.text = "";
      status.job = false;
      mounted.update(); // and ask again for what another display of this explorer pushed aside
    }
    mounted.drawStatus();
  };
  const follow = () => {
    const state = model.get("state"), { store } = mounted;
    if (JSON.stringify(state) !== JSON.stringify(store.state)) store.set({ ...store.first, ...state });
  };
  const lost = () => { mounted.store.status.gone = true; mounted.drawStatus(); };
  const seen = new IntersectionObserver((entries) => { // what nobody looks at is not computed
    source.visible = entries.at(-1).isIntersecting;
    if (source.visible) mounted.update();
  });
  seen.observe(el);
  model.on("msg:custom", hear);
  model.on("change:state", follow);
  model.on("change:about", start);
  model.on("comm_live_update", lost); // the kernel was restarted
  return () => { model.off("msg:custom", hear); model.off("change:state", follow); model.off("change:about", start); model.off("comm_live_update", lost); seen.disconnect(); clearTimeout(patience); clearTimeout(timer); if (!mounted.store.status.gone) push(); mounted.close(); };
};

// On a page of its own: all chunks are there.
const open_page = (root, payload) => {
  const about = { ...payload.about };
  const source = { offline: true, request() {}, cancel() {} };
  const mounted = mount(root, about, source, payload.state);
  for (const [key, chunk] of Object.entries(payload.chunks)) mounted.store.receive(key, chunk);
  mounted.store.asked = "";
  return mounted;
};
