// Sentences as points: untouched, with the set off and with a control off, in one frozen plane of each layer.

const ROLES = { untouched: "untouched", set: "set off", control: "control off" };
const NEAR = 12; // pixels
const STEP = 220; // milliseconds from one layer to the next
const LENGTHS = ["#c7d9ee", "#92b7dc", "#5a92c5", "#2d6aa3", "#123f70"];
const ENDS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#8C6D31"];

const makeMap = (store) => {
  const { about } = store;
  const codes = about.languages.map((one) => one.code);
  const count = about.test[about.hub].length;
  const canvas = h("canvas", { tabindex: 0, role: "application", "data-lm-suppress-shortcuts": "true",
    "aria-label": "Sentences as points. Left and right go to the next sentence, up and down to its translations, plus and minus zoom, Enter keeps a sentence, Escape lets go" });
  const spoken = h("div", { class: "tn-spoken", "aria-live": "polite" });
  const over = h("div", { class: "tn-canvas" }, canvas, spoken);
  const tools = h("div", { class: "tn-tools-row" });
  const legend = h("div", { class: "tn-legend" });
  const search = h("input", { type: "search", placeholder: "Search sentences", "aria-label": "Search sentences" });
  const hits = h("span", { class: "tn-soft", role: "status" });
  const card = h("aside", { class: "tn-card", "aria-label": "Sentence" });
  const el = h("div", { class: "tn-view tn-map" },
    h("div", { class: "tn-main" }, tools, over, legend),
    h("div", { class: "tn-side" }, h("div", { class: "tn-search" }, search, hits), card));
  const context = canvas.getContext("2d");
  let width = 0, height = 0, ratio = 1, frame = 0;
  let view = { x: 0, y: 0, zoom: 1 }, radius = 2.4;
  let shown = store.state.layer, target = store.state.layer, began = 0, from = store.state.layer;
  let hovered = null, pinned = null, lasso = [], picked = null, drawing = false, morph = 1, drag = null;
  let found = null, timings = [];

  const off = (code) => (code === about.hub ? null : store.data.get(keyOf.off(store.state, code)));
  const roles = () => {
    const wanted = store.state.morph ? ["set"] : Object.keys(ROLES).filter((role) => store.state.shown.includes(role));
    return wanted.length ? wanted : ["untouched"];
  };
  const visible = () => codes.filter((code) => !store.state.hidden.includes(code));
  const pointsOf = (role, code) => {
    const plane = store.data.get("plane");
    if (!plane) return null;
    if (role === "untouched" || code === about.hub) return plane.points[code];
    return off(code)?.[role].points ?? null;
  };
  const place = (points, layer, sentence) => { // between two layers while one gives way to the next
    const low = Math.floor(layer), share = layer - low;
    const at = 2 * (low * count + sentence);
    if (!share) return [points[at], points[at + 1]];
    const next = at + 2 * count;
    return [points[at] + share * (points[next] - points[at]), points[at + 1] + share * (points[next + 1] - points[at + 1])];
  };
  const coordinates = (role, code, sentence) => {
    const points = pointsOf(role, code);
    if (!points) return null;
    const [x, y] = place(points, shown, sentence);
    if (!store.state.morph || role === "untouched" || code === about.hub) return [x, y];
    const [a, b] = place(store.data.get("plane").points[code], shown, sentence);
    return [a + morph * (x - a), b + morph * (y - b)];
  };
  const panels = () => {
    const names = roles(), gap = 10, rows = width < 560 && names.length > 1 ? names.length : 1;
    const columns = rows > 1 ? 1 : names.length;
    const [w, hh] = [(width - gap * (columns - 1)) / columns, (height - gap * (rows - 1)) / rows];
    return names.map((role, at) => ({ role, left: rows > 1 ? 0 : at * (w + gap), top: rows > 1 ? at * (hh + gap) : 0, width: w, height: hh }));
  };
  const scale = (panel) => ((Math.min(panel.width, panel.height - 30) / 2 - 8) / radius) * view.zoom;
  const toScreen = (panel, [x, y]) => {
    const k = scale(panel);
    return [panel.left + panel.width / 2 + (x - view.x) * k, panel.top + 24 + (panel.height - 24) / 2 - (y - view.y) * k];
  };
  const toWorld = (panel, [px, py]) => {
    const k = scale(panel);
    return [(px - panel.left - panel.width / 2) / k + view.x, (panel.top + 24 + (panel.height - 24) / 2 - py) / k + view.y];
  };

  // The half width that shows 98 % of the points of all panels at a layer.
  const reaches = new Map();
  const reach = (layer) => {
    const key = `${layer} ${roles()} ${visible()} ${roles().map((role) => visible().map((code) => Boolean(pointsOf(role, code)))).flat()} ${keyOf.off(store.state, store.state.language)}`;
    if (!reaches.has(key)) reaches.set(key, measured(layer));
    return reaches.get(key);
  };
  const measured = (layer) => {
    const sizes = [];
    for (const role of roles()) for (const code of visible()) {
      const points = pointsOf(role, code);
      if (points) for (let n = 0; n < count; n++) sizes.push(Math.max(...place(points, layer, n).map(Math.abs)));
    }
    if (!sizes.length) return 2.4;
    sizes.sort((a, b) => a - b);
    return Math.min(1.12 * sizes[Math.floor(0.993 * (sizes.length - 1))], 6);
  };

  const endColours = () => {
    const counts = new Map();
    for (const code of visible()) for (const end of about.ends[code]) counts.set(end, (counts.get(end) ?? 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1]).slice(0, ENDS.length).map(([end, n], at) => [end, ENDS[at], n]);
  };
  let lengthCuts = null;
  const lengthStep = (code, sentence) => {
    if (!lengthCuts) {
      const all = codes.flatMap((one) => about.lengths[one]).sort((a, b) => a - b);
      lengthCuts = [0.2, 0.4, 0.6, 0.8].map((share) => all[Math.floor(share * (all.length - 1))]);
    }
    return lengthCuts.filter((cut) => about.lengths[code][sentence] > cut).length;
  };

  // A marker drawn once, and copied for each point.
  const sprites = new Map();
  const sprite = (marker, size, colour) => {
    const key = `${marker} ${size.toFixed(1)} ${colour} ${ratio}`;
    if (!sprites.has(key)) {
      if (sprites.size > 400) sprites.clear();
      const image = document.createElement("canvas"), half = Math.ceil(1.4 * size + 1);
      image.width = image.height = 2 * half * ratio;
      const brush = image.getContext("2d");
      brush.setTransform(ratio, 0, 0, ratio, half * ratio, half * ratio);
      brush.fillStyle = colour;
      brush.fill(new Path2D(markerPath(marker, size)));
      image.half = half;
      sprites.set(key, image);
    }
    return sprites.get(key);
  };

  const draw = () => {
    frame = 0;
    if (!width || !store.data.has("plane")) return;
    const start = performance.now();
    if (shown !== target) {
      const share = Math.min(1, (start - began) / STEP);
      shown = share === 1 ? target : from + (target - from) * (1 - (1 - share) ** 3);
      radius = reach(from) + ((shown - from) / (target - from)) * (reach(target) - reach(from));
      if (shown !== target) request();
    } else radius = reach(shown);
    const style = getComputedStyle(el), ink = (name) => style.getPropertyValue(name).trim();
    const dark = el.closest(".tn-app")?.dataset.theme === "dark";
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const faint = ink("--tn-faint"), low = 2 * count * Math.floor(shown), share = shown - Math.floor(shown);
    const along = (points, at) => { const value = points[low + at]; return share ? value + share * (points[low + at + 2 * count] - value) : value; };
    const ends = store.state.colour === "token" ? new Map(endColours().map(([end, colour]) => [end, colour])) : null;
    for (const panel of panels()) {
      context.save();
      context.beginPath();
      context.roundRect(panel.left, panel.top, panel.width, panel.height, 8);
      context.fillStyle = ink("--tn-panel");
      context.fill();
      context.strokeStyle = ink("--tn-line");
      context.stroke();
      context.clip();
      context.lineWidth = 1;
      const [zx, zy] = toScreen(panel, [0, 0]);
      context.strokeStyle = ink("--tn-grid");
      context.beginPath();
      context.moveTo(panel.left, zy); context.lineTo(panel.left + panel.width, zy);
      context.moveTo(zx, panel.top); context.lineTo(zx, panel.top + panel.height);
      context.stroke();
      let waiting = [];
      const size = clamp(panel.width / 150, 2.4, 4.2) * Math.sqrt(Math.min(view.zoom, 4));
      for (const code of visible()) {
        const look = store.look(code);
        const mine = readable(look.colour, dark), points = pointsOf(panel.role, code);
        if (!points) { waiting.push(look.name); continue; }
        const base = store.state.morph && code !== about.hub ? store.data.get("plane").points[code] : null;
        const k = scale(panel), [left, top] = [panel.left + panel.width / 2 - view.x * k, panel.top + 24 + (panel.height - 24) / 2 + view.y * k];
        for (let n = 0; n < count; n++) {
          let x = along(points, 2 * n), y = along(points, 2 * n + 1);
          if (base) { const a = along(base, 2 * n), b = along(base, 2 * n + 1); x = a + morph * (x - a); y = b + morph * (y - b); }
          const px = left + x * k, py = top - y * k;
          if (px < panel.left - 9 || px > panel.left + panel.width + 9 || py < panel.top - 9 || py > panel.top + panel.height + 9) continue;
          const dim = (picked && !picked.has(`${code}|${n}`)) || (found && !found.has(n)) || (pinned && pinned.sentence !== n);
          context.globalAlpha = dim ? 0.13 : 0.74;
          const image = sprite(look.marker, size, ends ? ends.get(about.ends[code][n]) ?? faint
            : store.state.colour === "length" ? LENGTHS[lengthStep(code, n)] : mine);
          context.drawImage(image, px - image.half, py - image.half, 2 * image.half, 2 * image.half);
        }
      }
      context.globalAlpha = 1;
      const centres = store.state.colour !== "language" ? [] : visible().filter((code) => pointsOf(panel.role, code)).map((code) => {
        let [x, y] = [0, 0];
        for (let n = 0; n < count; n++) { const [a, b] = coordinates(panel.role, code, n); x += a / count; y += b / count; }
        return [code, toScreen(panel, [x, y])];
      });
      for (const [code, [px, py]] of centres) {
        context.translate(px, py);
        const path = new Path2D(markerPath(store.look(code).marker, 7.5));
        context.lineWidth = 2.5; context.strokeStyle = ink("--tn-panel"); context.stroke(path);
        context.fillStyle = readable(store.look(code).colour, dark); context.fill(path);
        context.lineWidth = 1.2; context.strokeStyle = ink("--tn-ink"); context.stroke(path);
        context.translate(-px, -py);
      }
      const one = hovered ?? pinned;
      if (one) {
        const there = visible().map((code) => [code, coordinates(panel.role, code, one.sentence)]).filter(([, xy]) => xy)
          .map(([code, xy]) => [code, toScreen(panel, xy)]);
        const own = there.find(([code]) => code === one.code) ?? there[0];
        context.strokeStyle = ink("--tn-ink");
        context.lineWidth = 1;
        context.setLineDash([3, 3]);
        for (const [, [px, py]] of own ? there : []) { context.beginPath(); context.moveTo(...own[1]); context.lineTo(px, py); context.stroke(); }
        context.setLineDash([]);
        for (const [code, [px, py]] of there) {
          context.beginPath();
          context.arc(px, py, code === one.code ? 9 : 7, 0, 7);
          context.lineWidth = code === one.code ? 2.4 : 1.3;
          context.stroke();
        }
      }
      const name = store.state.morph ? "untouched → set off" : ROLES[panel.role];
      context.font = `600 12.5px ${style.fontFamily}`;
      context.fillStyle = ink(`--tn-role-${panel.role === "untouched" ? "untouched" : panel.role}`);
      context.fillText(name, panel.left + 12, panel.top + 19);
      const wide = context.measureText(name).width;
      context.font = `12px ${style.fontFamily}`;
      context.fillStyle = ink("--tn-soft");
      const note = waiting.length === visible().length - 1 && waiting.length ? "computing …" : waiting.length ? `${waiting.join(", ")} to come` : panel.role === "control" ? store.state.control : "";
      if (note && panel.width > 240) context.fillText(note, panel.left + 22 + wide, panel.top + 19);
      context.restore();
    }
    if (lasso.length > 1) {
      context.beginPath();
      lasso.forEach(([px, py], at) => (at ? context.lineTo(px, py) : context.moveTo(px, py)));
      context.closePath();
      context.strokeStyle = ink("--tn-accent");
      context.lineWidth = 1.5;
      context.setLineDash([5, 4]);
      context.stroke();
      context.setLineDash([]);
      context.globalAlpha = 0.08;
      context.fillStyle = ink("--tn-accent");
      context.fill();
      context.globalAlpha = 1;
    }
    timings.push(performance.now() - start);
    if (timings.length > 240) timings.shift();
    canvas.dataset.step = ([...timings].sort((a, b) => a - b)[timings.length >> 1]).toFixed(1);
    canvas.dataset.layer = String(Math.round(shown));
    canvas.dataset.drawn = roles().filter((role) => visible().every((code) => pointsOf(role, code))).join(" ");
  };
  const request = () => { frame ||= requestAnimationFrame(draw); };

  const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  const panelAt = ([px, py]) => panels().find((one) => px >= one.left && px <= one.left + one.width && py >= one.top && py <= one.top + one.height) ?? panels()[0];
  const nearest = (spot) => {
    const panel = panelAt(spot);
    let best = null, least = NEAR * NEAR;
    for (const code of visible()) {
      if (!pointsOf(panel.role, code)) continue;
      for (let n = 0; n < count; n++) {
        const [px, py] = toScreen(panel, coordinates(panel.role, code, n));
        const far = (px - spot[0]) ** 2 + (py - spot[1]) ** 2;
        if (far < least) [least, best] = [far, { code, sentence: n }];
      }
    }
    return best;
  };
  const inside = ([px, py], corners) => {
    let is = false;
    for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
      const [[ax, ay], [bx, by]] = [corners[i], corners[j]];
      if (ay > py !== by > py && px < ((bx - ax) * (py - ay)) / (by - ay) + ax) is = !is;
    }
    return is;
  };
  const zoom = (factor, spot) => {
    const panel = panelAt(spot), before = toWorld(panel, spot);
    view.zoom = clamp(view.zoom * factor, 0.5, 40);
    const after = toWorld(panel, spot);
    view.x += before[0] - after[0];
    view.y += before[1] - after[1];
    request();
  };
  const home = () => { view = { x: 0, y: 0, zoom: 1 }; picked = null; pinned = null; lasso = []; request(); tell(); };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    const spot = at(event);
    drag = { spot, view: { ...view }, panel: panelAt(spot), lasso: drawing || event.shiftKey, moved: false };
    if (drag.lasso) lasso = [spot];
  });
  canvas.addEventListener("pointermove", (event) => {
    const spot = at(event);
    if (drag) {
      drag.moved ||= Math.hypot(spot[0] - drag.spot[0], spot[1] - drag.spot[1]) > 4;
      if (drag.lasso) lasso.push(spot);
      else if (drag.moved) {
        const k = scale(drag.panel);
        view.x = drag.view.x - (spot[0] - drag.spot[0]) / k;
        view.y = drag.view.y + (spot[1] - drag.spot[1]) / k;
      }
      return request();
    }
    const one = nearest(spot);
    if (one?.code !== hovered?.code || one?.sentence !== hovered?.sentence) { hovered = one; tell(); request(); }
    canvas.style.cursor = drawing ? "crosshair" : one ? "pointer" : "grab";
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!drag) return;
    if (drag.lasso && lasso.length > 3) {
      picked = new Set();
      for (const code of visible()) if (pointsOf(drag.panel.role, code))
        for (let n = 0; n < count; n++)
          if (inside(toScreen(drag.panel, coordinates(drag.panel.role, code, n)), lasso)) picked.add(`${code}|${n}`);
      if (!picked.size) picked = null;
      pinned = null;
    } else if (!drag.moved) {
      const one = nearest(at(event));
      pinned = one && !(pinned?.sentence === one.sentence && pinned.code === one.code) ? one : null;
      picked = null;
    }
    lasso = [];
    drag = null;
    tell();
    request();
  });
  canvas.addEventListener("pointerleave", () => { if (!drag && hovered) { hovered = null; tell(); request(); } });
  canvas.addEventListener("wheel", (event) => { // the page scrolls until the map is in use
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== canvas) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * 0.0016), at(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoom(2, at(event)));
  canvas.addEventListener("keydown", (event) => {
    const listed = visible(), one = pinned ?? { code: listed[0], sentence: -1 };
    const turn = (by) => ({ ...one, sentence: (Math.max(one.sentence, by > 0 ? -1 : 0) + by + count) % count });
    const language = (by) => ({ code: listed[(listed.indexOf(one.code) + by + listed.length) % listed.length], sentence: Math.max(one.sentence, 0) });
    const acts = {
      ArrowRight: () => (pinned = turn(1)), ArrowLeft: () => (pinned = turn(-1)),
      ArrowDown: () => (pinned = language(1)), ArrowUp: () => (pinned = language(-1)),
      "+": () => zoom(1.4, [width / 2, height / 2]), "-": () => zoom(1 / 1.4, [width / 2, height / 2]),
      "=": () => zoom(1.4, [width / 2, height / 2]), 0: home, Escape: () => { pinned = picked = null; },
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
    hovered = null;
    spoken.textContent = pinned ? `${store.name(pinned.code)}: ${about.test[pinned.code][pinned.sentence]}` : "";
    tell();
    request();
  });

  const runSearch = () => {
    const text = search.value.trim().toLowerCase();
    found = null;
    if (text) {
      found = new Set();
      for (let n = 0; n < count; n++) if (codes.some((code) => about.test[code][n].toLowerCase().includes(text))) found.add(n);
    }
    hits.textContent = text ? `${found.size} of ${count} sentences` : "";
    if (text && found.size) pinned = null;
    request();
    tell();
  };
  search.addEventListener("input", runSearch);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && found?.size) {
      const listed = [...found], next = listed[(listed.indexOf(pinned?.sentence) + 1) % listed.length];
      pinned = { code: visible()[0], sentence: next };
      tell(); request();
    }
  });

  // The reading card: one sentence and its translations, or what the lasso holds, or how to begin.
  const tell = () => {
    const dark = el.closest(".tn-app")?.dataset.theme === "dark";
    const one = hovered ?? pinned;
    if (one) return fill(card, ...sentenceCard(one, dark));
    if (picked) {
      const listed = [...picked].map((key) => { const [code, n] = key.split("|"); return { code, sentence: Number(n) }; });
      return fill(card, ...listCard("In the lasso", listed, dark));
    }
    if (found?.size) return fill(card, ...listCard("Found", [...found].map((n) => ({ code: codes.find((code) => about.test[code][n].toLowerCase().includes(search.value.trim().toLowerCase())), sentence: n })), dark));
    const plane = store.data.get("plane");
    fill(card, 
      h("h3", {}, "One plane for each layer"),
      h("p", {}, `A point is a test sentence: the state at its ${about.position === "last" ? "last token" : about.position}. The plane of a layer is fitted to the untouched states once and kept, so what is switched off moves in the same picture. Large markers are the means of the languages.`),
      plane && h("dl", { class: "tn-facts" },
        h("dt", {}, "Variance in this plane"), h("dd", {}, percent(plane.explained[store.state.layer])),
        h("dt", {}, "Sentences"), h("dd", {}, `${count} × ${codes.length} languages`)),
      h("p", { class: "tn-soft" }, "Point at a sentence to read it beside its translations. Drag to move, scroll after a click to zoom, Shift and drag to circle a group."));
  };
  const text = (code, n, dark) => h("div", { class: "tn-line-of" }, swatch(store.look(code), dark),
    h("div", {}, h("span", { class: "tn-of" }, store.name(code)), h("p", { lang: code, dir: "auto" }, about.test[code][n])));
  const sentenceCard = ({ code, sentence }, dark) => {
    const others = codes.filter((one) => one !== code);
    const language = code === about.hub ? store.state.language : code;
    const rows = [["untouched", store.data.get("ribbon")?.[language].hits], ["set off", off(language)?.set.hits], ["control off", off(language)?.control.hits]].filter(([, hit]) => hit);
    return [
      h("h3", {}, `Sentence ${about.ids[sentence]}`, pinned?.sentence === sentence && pinned.code === code && h("span", { class: "tn-pin" }, "kept")),
      text(code, sentence, dark), h("hr", {}), ...others.map((one) => text(one, sentence, dark)),
      rows.length > 0 && h("div", { class: "tn-found" },
        h("h4", {}, `Is its ${store.name(about.hub)} translation the nearest? ${store.name(language)}, by layer`),
        ...rows.map(([name, hit]) => h("div", { class: `tn-cells tn-${name.split(" ")[0]}`, role: "img",
          "aria-label": `${name}: ${[...Array(about.layers).keys()].filter((layer) => hit(layer, sentence)).length} of ${about.layers} layers` },
          h("span", {}, name), h("div", {}, [...Array(about.layers).keys()].map((layer) =>
            h("i", { class: `${hit(layer, sentence) ? "on" : ""} ${layer === store.state.layer ? "here" : ""}`, title: `layer ${layer}: ${hit(layer, sentence) ? "yes" : "no"}` })))))),
    ];
  };
  // The neurons that move the language most towards the mean of what is circled.
  const score = (listed) => {
    const rows = codes.map((code) => [code, ...listed.filter((one) => one.code === code).map((one) => one.sentence)]).filter((row) => row.length > 1);
    const kind = about.kinds[store.state.kind], language = store.language.name;
    return store.source.offline ? [] : [h("p", { class: "tn-act" }, h("button", { type: "button", "data-name": "towards",
      title: `the neurons of ${kind === "Type-1" ? "early" : "late"} layers that move sentences in ${language} most towards the mean of these, untouched`,
      onclick: () => store.set({ group: rows.map((row) => row.join(".")).join(";"), view: "neurons" }) }, `Which neurons move ${language} here?`))];
  };
  const listCard = (title, listed, dark) => {
    const counts = codes.map((code) => [code, listed.filter((one) => one.code === code).length]).filter(([, n]) => n);
    return [
      h("h3", {}, `${title}: ${listed.length}`),
      h("p", { class: "tn-soft" }, counts.map(([code, n]) => `${store.name(code)} ${n}`).join(" · ")),
      ...score(listed),
      h("ul", { class: "tn-list" }, listed.slice(0, 120).map((one) => h("li", {}, h("button", { type: "button", onclick: () => { pinned = one; picked = null; tell(); request(); } },
        swatch(store.look(one.code), dark), h("span", { lang: one.code, dir: "auto" }, about.test[one.code][one.sentence]))))),
    ];
  };

  const slider = h("input", { type: "range", min: 0, max: 100, value: 100, "aria-label": "From untouched to the set off", oninput: (event) => { morph = event.target.value / 100; request(); } });
  const update = () => {
    const { state } = store, dark = el.closest(".tn-app")?.dataset.theme === "dark";
    if (state.layer !== target) {
      from = Math.round(shown); shown = from; target = state.layer; began = performance.now();
    }
    store.chunk("plane");
    const roles_ = roles();
    el.classList.toggle("tn-three", roles_.length === 3);
    if (roles_.some((role) => role !== "untouched"))
      for (const code of [state.language, ...visible()]) if (code !== about.hub) store.chunk(keyOf.off(state, code));
    const toggle = (role) => store.set({ morph: false, shown: state.shown.includes(role) ? state.shown.filter((one) => one !== role) : [...state.shown, role] });
    const button = (pressed, label, act, attributes = {}) => h("button", { type: "button", "aria-pressed": String(pressed), onclick: act, ...attributes }, label);
    const focused = tools.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    fill(tools, 
      h("div", { class: "tn-segments", role: "group", "aria-label": "What is shown" },
        ...Object.entries(ROLES).map(([role, name]) => button(!state.morph && state.shown.includes(role), name, () => toggle(role), { "data-name": role, class: `tn-role-${role}` })),
        button(state.morph, "morph", () => store.set({ morph: !state.morph }), { "data-name": "morph", title: "move from untouched to the set off" })),
      state.morph && slider,
      chooser("Colour", [["language", "language"], ["token", "last token"], ["length", "length"]], state.colour, (colour) => store.set({ colour })),
      h("div", { class: "tn-grow" }),
      h("div", { class: "tn-icons" },
        button(drawing, "Lasso", () => { drawing = !drawing; update(); }, { "data-name": "lasso", title: "circle a group of sentences (or Shift and drag)" }),
        h("button", { type: "button", title: "zoom in", "aria-label": "Zoom in", "data-name": "in", onclick: () => zoom(1.5, [width / 2, height / 2]) }, "+"),
        h("button", { type: "button", title: "zoom out", "aria-label": "Zoom out", "data-name": "out", onclick: () => zoom(1 / 1.5, [width / 2, height / 2]) }, "−"),
        h("button", { type: "button", title: "whole map", "data-name": "home", onclick: home }, "Fit")));
    if (focused) tools.querySelector(`[data-name="${focused}"]`)?.focus();
    const kept = legend.contains(document.activeElement) ? document.activeElement.dataset.code : null;
    fill(legend, ...(state.colour === "token" ? endColours().map(([end, colour, n]) => h("span", { class: "tn-chip" }, h("i", { style: `background:${colour}` }), `${JSON.stringify(end).slice(1, -1)} ${n}`))
      : state.colour === "length" ? [h("span", { class: "tn-soft" }, "short"), ...LENGTHS.map((colour) => h("i", { class: "tn-step", style: `background:${colour}` })), h("span", { class: "tn-soft" }, "long, in tokens")]
        : []), ...about.languages.map((one) => h("button", { type: "button", class: "tn-chip", "data-code": one.code, "aria-pressed": String(!state.hidden.includes(one.code)), title: "show or hide",
      onclick: () => { const hidden = state.hidden.includes(one.code) ? state.hidden.filter((code) => code !== one.code) : [...state.hidden, one.code]; if (hidden.length < codes.length) store.set({ hidden }); } },
      swatch(one, dark), one.name)));
    if (kept) legend.querySelector(`[data-code="${kept}"]`)?.focus();
    if (state.morph) slider.value = String(100 * morph);
    tell();
    request();
  };
  const watch = new ResizeObserver(() => {
    width = over.clientWidth;
    height = over.clientHeight;
    ratio = Math.min(devicePixelRatio || 1, 2);
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    request();
  });
  watch.observe(over);
  return {
    el, update,
    close() { watch.disconnect(); cancelAnimationFrame(frame); },
    png: () => new Promise((done) => { draw(); canvas.toBlob(done, "image/png"); }),
    rows() {
      const layer = store.state.layer, plane = store.data.get("plane");
      const rows = [["layer", "condition", "language", "sentence", "x", "y", "text"]];
      for (const role of roles()) for (const code of visible()) {
        const points = pointsOf(role, code);
        for (let n = 0; points && n < count; n++) rows.push([layer, ROLES[role], code, about.ids[n], ...place(points, layer, n).map((value) => (value * plane.spread[layer]).toPrecision(6)), about.test[code][n]]);
      }
      return rows;
    },
  };
};
