// A picture whose points show their labels: by mouse (hover, click) and keyboard (arrow keys, Enter, Escape).
const SVG = "http://www.w3.org/2000/svg";
const NEAR = 12; // pixels

const array = (view, Type) => new Type(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

const make = (name, parent, properties = {}) => {
  const node = document.createElement(name);
  Object.assign(node, properties);
  parent.append(node);
  return node;
};

// ipywidgets' sliders have a visible label, which their handles do not refer to; its play buttons have none.
const PLAY = { "fa-play": "Play or pause", "fa-pause": "Play or pause", "fa-stop": "Back to the first", "fa-retweet": "Repeat" };
const nameControls = (root) => {
  for (const button of root.querySelectorAll(".widget-play button")) {
    const icon = button.querySelector("i");
    const name = Object.keys(PLAY).find((one) => icon?.classList.contains(one));
    if (name) button.setAttribute("aria-label", PLAY[name]);
  }
  for (const slider of root.querySelectorAll(".widget-slider")) {
    const label = slider.querySelector(".widget-label")?.textContent.trim();
    const handles = [...slider.querySelectorAll("[role=slider]")];
    handles.forEach((handle, place) =>
      handle.setAttribute("aria-label", handles.length > 1 ? `${label}, ${place ? "to" : "from"}` : label));
  }
};

function render({ model, el }) {
  const box = make("div", el, { className: "tn-picture" });
  const image = make("img", box);
  const overlay = box.appendChild(document.createElementNS(SVG, "svg"));
  const tip = make("div", box, { className: "tn-tip", dir: "auto", hidden: true });
  tip.setAttribute("role", "tooltip");
  const spoken = make("div", box, { className: "tn-spoken" }); // read by screen readers
  spoken.setAttribute("aria-live", "polite");
  box.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the arrow keys
  let url = null, points = [], ids = [], at = -1, pinned = null; // `pinned` is a sentence, whatever its language

  const sentence = (place) => ids[place] % model.get("aligned");

  const ring = (place, main) => {
    const circle = overlay.appendChild(document.createElementNS(SVG, "circle"));
    circle.setAttribute("cx", `${100 * points[2 * place]}%`);
    circle.setAttribute("cy", `${100 * points[2 * place + 1]}%`);
    circle.setAttribute("r", main ? 8 : 6);
    circle.setAttribute("class", main ? "tn-at" : "tn-pinned");
  };

  const mark = () => {
    overlay.replaceChildren();
    if (pinned !== null) {
      const same = [...ids.keys()].filter((place) => sentence(place) === pinned);
      for (const place of same.slice(1)) {
        const line = overlay.appendChild(document.createElementNS(SVG, "line"));
        for (const [name, value] of [["x1", points[2 * same[0]]], ["y1", points[2 * same[0] + 1]],
          ["x2", points[2 * place]], ["y2", points[2 * place + 1]]]) line.setAttribute(name, `${100 * value}%`);
      }
      for (const place of same) ring(place, place === at);
    }
    if (at >= 0) ring(at, true);
  };

  const tell = (place) => {
    at = place;
    tip.hidden = place < 0 && pinned === null;
    if (!tip.hidden) {
      const labels = model.get("labels");
      const shown = pinned === null ? [place] : [...ids.keys()].filter((one) => sentence(one) === pinned);
      const head = place < 0 ? shown[0] : place;
      const [x, y] = [points[2 * head], points[2 * head + 1]];
      const first = place >= 0 && !shown.includes(place) ? [place] : [];
      tip.replaceChildren(...[...first, ...shown].map((one) => {
        const line = document.createElement("div");
        line.textContent = labels[ids[one]];
        if (one === place && shown.length > 1) line.className = "tn-here";
        return line;
      }));
      tip.style.left = x > 0.55 ? "" : `calc(${100 * x}% + 14px)`;
      tip.style.right = x > 0.55 ? `calc(${100 * (1 - x)}% + 14px)` : "";
      tip.style.top = `calc(${100 * y}% + 12px)`;
      spoken.textContent = tip.innerText;
    }
    mark();
  };

  const draw = () => {
    points = array(model.get("points"), Float32Array);
    const before = at >= 0 ? ids[at] : null;
    ids = array(model.get("ids"), Int32Array);
    box.tabIndex = ids.length ? 0 : -1;
    box.setAttribute("role", ids.length ? "application" : "presentation");
    box.setAttribute("aria-label", ids.length
      ? "Points of the picture: the arrow keys move between points, Enter shows translations, Escape closes them" : "");
    const old = url;
    const number = model.get("drawn");
    url = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
    image.onload = () => {
      if (old) URL.revokeObjectURL(old);
      image.dataset.drawn = number;
      image.style.width = `${image.naturalWidth / model.get("scale")}px`;
    };
    image.alt = model.get("alt");
    image.src = url;
    tell(before === null ? -1 : ids.indexOf(before));
  };

  const nearest = (event) => {
    const frame = image.getBoundingClientRect();
    let best = -1, least = NEAR * NEAR;
    for (let place = 0; place < ids.length; place++) {
      const dx = frame.left + points[2 * place] * frame.width - event.clientX;
      const dy = frame.top + points[2 * place + 1] * frame.height - event.clientY;
      if (dx * dx + dy * dy < least) [least, best] = [dx * dx + dy * dy, place];
    }
    return best;
  };

  const pin = (place) => {
    pinned = place < 0 || sentence(place) === pinned ? null : sentence(place);
    tell(place);
  };

  box.addEventListener("mousemove", (event) => {
    const place = nearest(event);
    if (place !== at) tell(place);
  });
  box.addEventListener("mouseleave", () => tell(-1));
  box.addEventListener("click", (event) => pin(nearest(event)));
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!ids.length) return;
    if (step) tell((Math.max(at, step > 0 ? -1 : 0) + step + ids.length) % ids.length);
    else if (event.key === "Enter" || event.key === " ") pin(at);
    else if (event.key === "Escape") { pinned = null; tell(-1); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  model.on("change:drawn", draw);
  draw();

  const watch = new MutationObserver(() => nameControls(el.closest(".tn-explorer") ?? el));
  const timer = setInterval(() => { // the explorer is attached to the page after its parts
    const root = el.closest(".tn-explorer");
    if (!root) return;
    clearInterval(timer);
    nameControls(root);
    watch.observe(root, { childList: true, subtree: true });
  }, 50);
  return () => {
    clearInterval(timer);
    watch.disconnect();
    model.off("change:drawn", draw);
    if (url) URL.revokeObjectURL(url);
  };
}

export default { render };
