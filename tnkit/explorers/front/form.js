// The form of a detection: what is set here makes another study, which all views then show.

const makeForm = (store) => {
  const { about } = store, { form } = about;
  const chosen = {
    model: about.model, hub: about.hub, distance: form.distance, score: form.score, position: about.position,
    top: about.size, sentences: form.sentences, languages: about.languages.map((one) => one.code),
    layers: form.layers, // null: each type's own
  };
  const number_ = (name, label, most) => h("label", { class: "tn-field" }, h("span", {}, label),
    h("input", { type: "number", min: 1, max: most, value: chosen[name], "data-name": name,
      oninput: (event) => { chosen[name] = Number(event.target.value); } }));
  const pick = (name, label, options) => chooser(label, options, chosen[name], (value) => { chosen[name] = value; update(); }, { "data-name": `form ${name}` });
  const listed = [...Array(about.layers).keys()].map((layer) => [layer, String(layer)]);
  const fields = h("div", { class: "tn-form" });
  const run = h("button", { type: "button", class: "tn-primary", "data-name": "run", onclick: () => {
    store.status.job = true;
    store.status.failed = store.status.said = "";
    store.source.find({ ...chosen });
    store.tell();
  } }, "Run");
  const save = h("button", { type: "button", "data-name": "save", title: "every detection, for tn.Detection.load", onclick: () => store.source.save() }, "Save results");
  const model = h("input", { type: "text", value: chosen.model, list: "tn-models", "data-name": "form model",
    oninput: (event) => { chosen.model = event.target.value.trim() || about.model; update(); } });
  const el = h("section", { class: "tn-panel", "aria-label": "Find neurons" }, h("h3", {}, "Find neurons"), fields,
    h("div", { class: "tn-tools-row" }, run, save, h("span", { class: "tn-soft" }, "Both types are found in one pass. All views then show the new neurons; cancelling keeps the old ones.")));

  let drawn = "";
  const update = () => {
    const other = chosen.model !== about.model; // whose layers are not known yet
    if (other) chosen.layers = null;
    run.disabled = store.status.job;
    run.textContent = store.status.job ? "Running" : "Run";
    const { model: _, top, sentences, ...picked } = chosen, shown = JSON.stringify([picked, other]);
    if (shown === drawn) return;
    drawn = shown;
    const focused = fields.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    const pairs = (names) => names.map((name) => [name, name]);
    fill(fields,
      h("label", { class: "tn-field" }, h("span", {}, "Model"), model, h("datalist", { id: "tn-models" }, form.models.map((name) => h("option", { value: name })))),
      pick("hub", "Hub", Object.entries(form.languages)), pick("score", "Score", pairs(form.scores)), pick("distance", "Distance", pairs(form.distances)),
      pick("position", "Token", Object.entries(form.positions)), number_("top", "Top", about.layers * about.width), number_("sentences", "Sentences", 100000),
      chooser("Layers", [["own", "early and late"], ["range", "from … to …"]], chosen.layers && !other ? "range" : "own", (value) => {
        chosen.layers = value === "own" ? null : [0, about.layers - 1];
        update();
      }, { "data-name": "form layers", disabled: other }),
      chosen.layers && !other && ["from", "to"].map((name, at) => chooser(name, listed, chosen.layers[at], (value) => {
        chosen.layers[at] = Number(value);
        chosen.layers[1 - at] = at ? Math.min(chosen.layers[0], chosen.layers[1]) : Math.max(...chosen.layers);
        update();
      }, { "data-name": `form ${name}` })),
      h("div", { class: "tn-segments", role: "group", "aria-label": "Languages" }, Object.entries(form.languages).map(([code, name]) => {
        const hub = code === chosen.hub, on = hub || chosen.languages.includes(code);
        return h("button", { type: "button", "aria-pressed": String(on), disabled: hub, "data-name": `form ${code}`, onclick: () => {
          chosen.languages = on ? chosen.languages.filter((one) => one !== code) : [...chosen.languages, code];
          update();
        } }, hub ? `${name} (hub)` : name);
      })));
    if (focused) fields.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
  };
  return { el, update };
};
