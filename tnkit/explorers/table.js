// A table that is sorted by its column heads and from which one row is chosen, by mouse or with the arrow keys.
function render({ model, el }) {
  const scroll = document.createElement("div");
  scroll.className = "tn-table";
  scroll.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the arrow keys
  el.append(scroll);
  let by = 0, down = false, order = [];

  const text = (value, digits) =>
    value === null ? "—" : typeof value === "number" && digits ? value.toPrecision(digits) : String(value);

  const sort = () => {
    const rows = model.get("rows");
    order = [...rows.keys()].sort((a, b) => {
      const [x, y] = [rows[a][by], rows[b][by]];
      const less = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return (down ? -less : less) || a - b;
    });
  };

  const choose = (row, focus) => {
    if (row === undefined) return;
    if (model.get("chosen") !== row) {
      model.set("chosen", row);
      model.save_changes();
    }
    for (const line of scroll.querySelectorAll("tbody tr")) {
      const here = Number(line.dataset.row) === row;
      line.setAttribute("aria-selected", here);
      line.tabIndex = here ? 0 : -1;
      if (here && focus) line.focus();
    }
  };

  const draw = () => {
    const [columns, rows, digits] = [model.get("columns"), model.get("rows"), model.get("digits")];
    by = Math.min(by, columns.length - 1);
    sort();
    const table = document.createElement("table");
    table.setAttribute("role", "grid");
    table.setAttribute("aria-label", model.get("label"));
    const head = table.createTHead().insertRow();
    columns.forEach((name, column) => {
      const cell = head.appendChild(document.createElement("th"));
      cell.scope = "col";
      if (column === by) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      const button = cell.appendChild(document.createElement("button"));
      button.type = "button";
      button.textContent = name + (column === by ? (down ? " ▼" : " ▲") : "");
      button.title = `sort by ${name}`;
      button.addEventListener("click", () => {
        [by, down] = [column, column === by ? !down : false];
        draw();
        scroll.querySelectorAll("th button")[column].focus();
      });
    });
    const body = table.createTBody();
    for (const row of order) {
      const line = body.insertRow();
      line.dataset.row = row;
      rows[row].forEach((value, column) => {
        const cell = line.insertCell();
        cell.textContent = text(value, digits[column]);
        if (typeof value === "number") cell.className = "tn-number";
      });
      line.addEventListener("click", () => choose(row, true));
    }
    scroll.replaceChildren(table);
    choose(model.get("chosen"), false);
  };

  scroll.addEventListener("keydown", (event) => {
    if (event.target.tagName !== "TR") return;
    const place = order.indexOf(model.get("chosen"));
    const last = order.length - 1;
    const next = { ArrowDown: Math.min(place + 1, last), ArrowUp: Math.max(place - 1, 0), Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    choose(order[next], true);
  });
  const follow = () => choose(model.get("chosen"), false);
  model.on("change:rows", draw);
  model.on("change:chosen", follow);
  draw();
  return () => { model.off("change:rows", draw); model.off("change:chosen", follow); };
}

export default { render };
