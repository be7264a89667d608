// One row per config, to sort and to filter.

const SHOWN_AT_FIRST = 400;
const tableView = { sort: "best", down: true, most: SHOWN_AT_FIRST };

function tableColumns() {
  const finals = [...new Set(run.rows.flatMap((row) => Object.keys(row.final)))];
  const columns = [{ key: "config", title: "config", value: (row) => row.id, text: (row) => row.name.split("-")[0], left: true }];
  run.hyperparameters.forEach((axis, i) => columns.push({
    key: axis.name, title: axis.name, left: axis.kind === "text",
    value: (row) => (row.has[i] ? row.values[i] : null), text: (row) => (row.has[i] ? number(row.values[i]) : ""),
  }));
  columns.push({ key: "best", title: `best ${run.metric}`, value: (row) => row.best, rank: score, text: (row) => number(row.best, 5) });
  columns.push({ key: "epoch", title: "in epoch", value: (row) => row.best_epoch, text: (row) => number(row.best_epoch) });
  for (const name of finals) columns.push({ key: `final ${name}`, title: `last ${name}`, value: (row) => row.final[name] ?? null, text: (row) => number(row.final[name], 5) });
  columns.push({ key: "epochs", title: "epochs", value: (row) => row.epochs, text: (row) => String(row.epochs) });
  columns.push({ key: "status", title: "status", value: (row) => row.status, text: (row) => row.status, left: true });
  if (run.rows.some((row) => row.lineage.length)) {
    columns.push({ key: "lineage", title: "states taken over", left: true, wrap: true, value: (row) => row.lineage.length, text: lineageText, hint: lineageHint });
  }
  return columns;
}

const lineageText = (row) => row.lineage.map((step) => `${shortName(step.source)} at ${step.epoch}`).join(", ");
const lineageHint = (row) => row.lineage.map((step) => `before epoch ${step.epoch}: state of ${shortName(step.source)}, then ${
  Object.entries(step.hyperparameters).map(([name, value]) => `${name} ${number(value)}`).join(", ") || "its own hyperparameters"}`).join("\n");

// Each word must be met: `lr<0.01`, `arch=cnn`, `status=done`, or text that is part of name or status.
function makeFilter(words, columns) {
  const tests = words.trim().split(/\s+/).filter(Boolean).map((word) => {
    const match = /^([^<>=!]+)(<=|>=|!=|=|<|>)(.+)$/.exec(word);
    const column = match && columns.find((c) => [c.key, c.title, c.key.replace("final ", "")].some((n) => n.toLowerCase() === match[1].toLowerCase()) || (match[1].toLowerCase() === run.metric.toLowerCase() && c.key === "best"));
    if (!column) return (row) => `${row.name} ${row.status}`.toLowerCase().includes(word.toLowerCase());
    const [, , sign, given] = match, wanted = Number(given);
    return (row) => {
      const value = column.key === "config" ? shortName(row.id) : column.value(row);
      if (value === null || value === undefined) return sign === "!=";
      const same = typeof value === "number" && !Number.isNaN(wanted) ? value === wanted : String(value).toLowerCase() === given.toLowerCase();
      if (sign === "=") return same;
      if (sign === "!=") return !same;
      if (typeof value !== "number" || Number.isNaN(wanted)) return false;
      return { "<": value < wanted, "<=": value <= wanted, ">": value > wanted, ">=": value >= wanted }[sign];
    };
  });
  return (row) => tests.every((test) => test(row));
}

function showTable() {
  const columns = tableColumns(), place = byId("table-body");
  const search = el("input", { type: "search", id: "filter", placeholder: "Filter, as in: cnn lr<0.01 status=done", "aria-label": "Filter the configs",
    autocomplete: "off", spellcheck: "false", oninput: () => { chosen.text = search.value; refilter(); } });
  const clear = el("button", { type: "button", id: "clear", onclick: () => { search.value = chosen.text = ""; chosen.brushes.clear(); chosen.config = null; refilter(); } }, "Clear");
  byId("table-controls").append(search, clear, el("button", { type: "button", onclick: () => save(columns) }, "CSV"));

  function refilter() {
    const passes = makeFilter(chosen.text, columns);
    chosen.shown = new Set(run.rows.filter((row) => passes(row) && brushed(row)).map((row) => row.id));
    tableView.most = SHOWN_AT_FIRST;
    changed("filter");
  }
  showTable.refilter = refilter;

  function order(rows) {
    const column = columns.find((c) => c.key === tableView.sort), sign = tableView.down ? -1 : 1;
    const value = column.rank ? (row) => (Number.isFinite(column.rank(row)) ? column.rank(row) : null) : column.value;
    return rows.map((row) => [row, value(row)]).sort(([a, x], [b, y]) => {
      if (x === null || y === null) return (x === null) - (y === null) || a.id - b.id;
      const way = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      return sign * way || a.id - b.id;
    }).map(([row]) => row);
  }

  function draw() {
    const shown = order(run.rows.filter((row) => chosen.shown.has(row.id))), head = el("tr");
    for (const column of columns) {
      const sorted = column.key === tableView.sort;
      // The best comes first where "down" is asked for, whether the objective is max or min.
      const way = column.rank && !run.maximise ? !tableView.down : tableView.down;
      head.append(el("th", { class: column.left ? "left" : "", scope: "col", "aria-sort": sorted ? (way ? "descending" : "ascending") : "none" },
        el("button", { type: "button", data: { key: column.key }, onclick: () => {
          tableView.down = sorted ? !tableView.down : Boolean(column.rank);
          tableView.sort = column.key;
          draw();
        } }, column.title)));
    }
    const body = el("tbody");
    for (const row of shown.slice(0, tableView.most)) {
      const line = el("tr", { data: { id: row.id }, class: `${row.id === run.best ? "best" : ""} ${row.id === chosen.config ? "picked" : ""}`, onclick: () => pick(row.id),
        onpointerenter: () => hover(row.id), onpointerleave: () => hover(null) });
      for (const column of columns) {
        const value = column.value(row), cell = el("td", { class: column.wrap ? "left steps" : column.left ? "left" : "", data: { key: column.key, value: JSON.stringify(value) } });
        const hint = column.hint ? column.hint(row) : column.key === "config" ? row.name : typeof value === "number" ? String(value) : "";
        if (hint) cell.title = hint;
        if (column.key === "status") cell.append(el("span", { class: `chip ${/^[a-z]+$/.test(row.status) ? row.status : ""}` }, row.status));
        else cell.textContent = column.text(row);
        line.append(cell);
      }
      body.append(line);
    }
    place.replaceChildren(el("table", {}, el("thead", {}, head), body));
    if (shown.length > tableView.most) {
      place.append(el("button", { type: "button", onclick: () => { tableView.most += 2000; draw(); } }, `Show ${shown.length - tableView.most} more`));
    }
    byId("table-hint").textContent = `${shown.length} of ${plural(run.rows.length, "config")}. Click a heading to sort, a row to follow the config through the page. The filter holds for the curves and the axes below too.`;
  }
  onChange((what) => {
    if (what === "filter") draw();
    if (what === "config") for (const line of place.querySelectorAll("tbody tr")) line.classList.toggle("picked", Number(line.dataset.id) === chosen.config);
  });
  draw();
}

function save(columns) {
  const quote = (value) => {
    const words = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(words) ? `"${words.replaceAll('"', '""')}"` : words;
  };
  const rows = run.rows.filter((row) => chosen.shown.has(row.id));
  const lines = [columns.map((column) => quote(column.title)), ...rows.map((row) => columns.map((column) => quote(column.key === "config" ? row.name : column.key === "lineage" ? lineageText(row) : column.value(row))))];
  const link = el("a", { download: "configs.csv", href: URL.createObjectURL(new Blob([lines.map((cells) => cells.join(",")).join("\n") + "\n"], { type: "text/csv" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
