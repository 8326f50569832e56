// How a prompt goes on: with the set and its control changed, or with one language taken away and another added.

const SCOPES = [["last", "the last token"], ["prompt", "the whole prompt"], ["all", "every token"]];

// A text area keeps its keys to itself; Control and Enter do what its button does.
const keepKeys = (area, act) => area.addEventListener("keydown", (event) => {
  event.stopPropagation();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); act(); }
});

const makePrompt = (store) => {
  const { about } = store;
  const area = h("textarea", { rows: 2, dir: "auto", "aria-label": "Prompt", "data-name": "prompt" });
  const mode = h("div", { class: "tn-tools-row" });
  const tools = h("div", { class: "tn-tools-row" });
  const shown = h("div", { class: "tn-said" });
  const act = () => {
    shown.querySelector("[role=alert]")?.remove();
    if (!area.value.trim()) {
      last = null;
      return fill(shown, h("p", { role: "alert", class: "tn-error" }, "The prompt is empty; write the beginning of a sentence."));
    }
    store.refused.delete(keyOf.said({ ...store.state, prompt: area.value }));
    if (store.state.prompt === area.value) return store.tell();
    store.set({ prompt: area.value });
  };
  const strength = h("input", { type: "range", min: 0, max: about.strength, step: 0.25, "aria-label": "Strength", "data-name": "strength" });
  const said = h("output", {});
  const slider = h("label", { class: "tn-field" }, h("span", {}, "Strength"), strength, said);
  strength.addEventListener("input", () => fill(said, number(Number(strength.value), 2)));
  strength.addEventListener("change", () => store.set({ strength: Number(strength.value) }));
  keepKeys(area, act);
  const el = h("section", { class: "tn-panel tn-prompt", "aria-label": "Continue a prompt" }, mode,
    h("div", { class: "tn-prompt-row" }, area, h("button", { type: "button", class: "tn-primary", "data-name": "continue", title: "Control and Enter in the text", onclick: act }, "Continue")), tools, shown);
  let suggested = null, last = null, lastKey = "", offered = "";

  const suggest = (language) => {
    const letters = [...about.test[language][0]];
    return letters.slice(0, Math.max(letters.length >> 1, 1)).join("").trimEnd();
  };
  const changed = ({ value }) => (value === "zero" ? "off" : `at ${value}`);
  const settings = (one) => one.away
    ? `${one.size} Type-2 neurons of ${store.name(one.added)} + ${number(one.strength, 2)} × (their mean in ${store.name(one.added)} − their mean in ${store.name(one.away)}), at every token${one.away === about.hub ? "" : `; those of ${store.name(one.away)} × ${number(Math.max(0, 1 - one.strength), 2)}`}.`
    : `${one.size} ${about.kinds[one.kind]} neurons of ${store.name(one.language)} ${changed(one)} at ${SCOPES.find(([scope]) => scope === one.scope)[1]}; control: ${one.control}.`;
  const draw = (chunk) => fill(shown,
    h("p", { class: "tn-soft" }, `${settings(chunk.settings)} The likeliest ${chunk.tokens} tokens.`, chunk.unknown && ` Languages are not named: ${chunk.unknown}`),
    h("div", { class: "tn-scroll", tabindex: 0, role: "region", "aria-label": "Continuations" }, h("table", {},
      h("thead", {}, h("tr", {}, ["condition", "language", "text"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, chunk.rows.map((row) => h("tr", { class: `tn-role-${row.role}` }, h("th", { scope: "row" }, h("i", {}), row.name + (row.role === "set" && chunk.settings.value ? ` ${changed(chunk.settings)}` : "")),
        h("td", {}, row.language ? store.name(row.language) : "unclear"),
        h("td", { class: "tn-text", dir: "auto", lang: row.language }, h("span", { class: "tn-soft" }, chunk.prompt), h("b", {}, row.text)))))) ));

  const update = () => {
    const { state } = store;
    const focused = el.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    const offer = JSON.stringify([state.steering, state.away, state.added]);
    if (offer !== offered) {
      offered = offer;
      offerControls(state);
    }
    if (document.activeElement !== strength) strength.value = state.strength;
    fill(said, number(Number(strength.value), 2));
    const wanted = suggest(state.steering ? state.away : state.language);
    if (suggested === null && state.prompt) area.value = state.prompt;
    else if (document.activeElement !== area && (!area.value || area.value === suggested)) area.value = wanted;
    suggested = wanted;
    if (focused && document.activeElement?.dataset.name !== focused) el.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
    if (!state.prompt) { last = null; if (!shown.querySelector("[role=alert]")) fill(shown); return; }
    const key = keyOf.said(state), chunk = store.chunk(key);
    shown.classList.toggle("tn-stale", !chunk);
    if (chunk && (chunk !== last || key !== lastKey)) { [last, lastKey] = [chunk, key]; draw(chunk); }
  };
  const offerControls = (state) => {
    fill(mode, h("h3", {}, "Continue a prompt"), h("div", { class: "tn-segments", role: "group", "aria-label": "What is changed" },
      [[false, "with the set changed"], [true, "with a language added"]].map(([steering, name]) =>
        h("button", { type: "button", "aria-pressed": String(state.steering === steering), "data-name": `steering ${steering}`, onclick: () => store.set({ steering }) }, name))));
    const language = (code) => [code, store.name(code)];
    const codes = about.languages.map((one) => one.code);
    if (state.steering) fill(tools, chooser("Take away", codes.map(language), state.away, (away) => store.set({ away }), { "data-name": "away" }),
      chooser("Add", codes.filter((code) => code !== about.hub).map(language), state.added, (added) => store.set({ added }), { "data-name": "added" }), slider);
    else fill(tools, h("p", { class: "tn-soft" }, "With the neurons, what they are set to, where, and the control that are chosen above."));
  };
  return { el, update };
};
