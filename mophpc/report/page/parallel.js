// Parallel coordinates: a line per config through its hyperparameters to its result. And importance.

const AXIS_ROOM = 104, TOP = 42, BOTTOM = 34, ABSENT = 20;

function axesOf() {
  const axes = run.hyperparameters.map((axis, i) => {
    const rows = run.rows.filter((row) => row.has[i]), values = rows.map((row) => row.values[i]);
    const found = { title: axis.name, key: String(i), has: (row) => row.has[i], absent: rows.length < run.rows.length, numeric: axis.kind !== "text" };
    const distinct = [...new Set(values)];
    if (found.numeric) {
      let low = Math.min(...values), high = Math.max(...values);
      if (low === high) { low -= Math.abs(low) / 2 || 1; high += Math.abs(high) / 2 || 1; }
      return { ...found, low, high, log: axis.kind === "log" && low > 0, ticks: distinct.length <= 6 ? distinct : null, value: (row) => row.values[i] };
    }
    const place = new Map(distinct.sort((a, b) => String(a).localeCompare(String(b), "en", { numeric: true })).map((value, at) => [value, at]));
    return { ...found, low: -0.3, high: distinct.length - 0.7, log: false, names: distinct.map(String), value: (row) => place.get(row.values[i]) };
  });
  const results = run.rows.map((row) => row.best).filter((value) => value !== null && Math.abs(value) < 1e30).sort((a, b) => a - b);
  if (results.length) {
    let low = results[0], high = results[results.length - 1];
    // Few results that are far worse than the others must not flatten these.
    const most = results[Math.floor(0.9 * (results.length - 1))], least = results[Math.ceil(0.1 * (results.length - 1))];
    if (!run.maximise && most > low && high - most > 4 * (most - low)) high = most + 0.2 * (most - low);
    if (run.maximise && high > least && least - low > 4 * (high - least)) low = least - 0.2 * (high - least);
    const shown = low === high ? [low] : ticks(low, high, 4);
    if (low === high) { low -= Math.abs(low) * 0.01 || 0.5; high += Math.abs(high) * 0.01 || 0.5; }
    axes.push({ title: `best ${run.metric}`, key: "best", has: (row) => row.best !== null, absent: run.rows.some((row) => row.best === null), numeric: true, low, high, log: false, ticks: shown,
      value: (row) => Math.min(high, Math.max(low, row.best)) });
  }
  return axes;
}

function brushed(row) {
  for (const { axis, low, high } of chosen.brushes.values()) {
    if (!axis.has(row)) return false;
    const value = axis.value(row);
    if (value < low || value > high) return false;
  }
  return true;
}

function showParallel() {
  const place = byId("parallel-plot"), axes = axesOf();
  byId("parallel-hint").textContent = "Drag along an axis to let only these configs through, here and above; click the axis to let all through again. Configs without a hyperparameter pass below its axis." + (run.rows.some((row) => !Number.isFinite(score(row))) ? " Red: diverged; grey: without a result." : "");
  if (axes.length < 2 || run.rows.length < 2) {
    byId("parallel-hint").textContent = "There is nothing to compare: one config, or no result.";
    showImportance();
    return;
  }
  const canvas = new Canvas(place, 320, paint, "Parallel coordinates of the configs' hyperparameters and results");
  place.dataset.axes = JSON.stringify(axes.map(({ title, low, high, ticks: at }) => ({ title, low, high, ticks: at ?? null })));
  let drag = null;
  const room = () => Math.max(place.clientWidth, axes.length * AXIS_ROOM);
  const bottom = () => canvas.height - BOTTOM - (axes.some((axis) => axis.absent) ? ABSENT : 0);
  const xOf = (i) => 56 + (i * (canvas.width - 112)) / (axes.length - 1);
  const yOf = (axis) => scale(axis.low, axis.high, bottom(), TOP, axis.log);
  const yAt = (axis, row) => (axis.has(row) ? yOf(axis)(axis.value(row)) : canvas.height - BOTTOM + 2);

  function paint(pen, width, height) {
    canvas.fixed = room() > place.clientWidth ? room() : 0;
    if (canvas.fixed && canvas.fixed !== width) { canvas.draw(); return; }
    const ranked = run.rows.filter((row) => Number.isFinite(score(row))).sort((a, b) => score(a) - score(b));
    const rank = new Map(ranked.map((row, i) => [row.id, ranked.length < 2 ? 1 : i / (ranked.length - 1)]));
    const shown = run.rows.filter((row) => chosen.shown.has(row.id)).sort((a, b) => (rank.get(a.id) ?? -1) - (rank.get(b.id) ?? -1));
    pen.lineWidth = 1;
    const wires = (rows, colour, alpha, thick) => {
      pen.globalAlpha = alpha;
      pen.lineWidth = thick;
      for (const row of rows) {
        pen.strokeStyle = colour(row);
        pen.beginPath();
        axes.forEach((axis, i) => {
          const x = xOf(i), y = yAt(axis, row);
          if (!i) { pen.moveTo(x, y); return; }
          const from = xOf(i - 1), middle = (from + x) / 2;
          pen.bezierCurveTo(middle, yAt(axes[i - 1], row), middle, y, x, y);
        });
        pen.stroke();
      }
      pen.globalAlpha = 1;
    };
    if (shown.length < run.rows.length) wires(run.rows.filter((row) => !chosen.shown.has(row.id)), () => style.line, 0.5, 1);
    wires(shown, (row) => (rank.has(row.id) ? scaleColour(rank.get(row.id)) : row.status === "diverged" ? style.bad : style.plan), Math.max(0.3, Math.min(0.8, 30 / shown.length)), 1.4);
    const front = [run.best, chosen.config, chosen.over].filter((id) => id !== null && chosen.shown.has(id)).map((id) => rowOf.get(id));
    for (const row of front) wires([row], () => (row.id === run.best ? style.best : style.accent), 1, 2.6);
    axes.forEach((axis, i) => paintAxis(pen, axis, xOf(i), height));
  }

  function paintAxis(pen, axis, x, height) {
    line(pen, x, TOP, x, bottom(), style.muted, 1.2);
    pen.font = `600 13px ${style.font}`;
    text(pen, axis.title.length > 16 ? `${axis.title.slice(0, 15)}…` : axis.title, x, 16, style.ink, "center");
    pen.font = `12px ${style.font}`;
    const y = yOf(axis), marks = axis.names ? axis.names.map((name, at) => [at, name]) :
      (axis.ticks ?? (axis.log ? logTicks(axis.low, axis.high) : ticks(axis.low, axis.high, 4))).map((value) => [value, number(value)]);
    let last = Infinity;
    for (const [value, words] of marks.slice().sort((a, b) => a[0] - b[0])) {
      if (last - y(value) < 13) continue;
      last = y(value);
      line(pen, x - 3, last, x + 3, last, style.muted);
      label(pen, words.length > 12 ? `${words.slice(0, 11)}…` : words, x + 7, last, style.ink);
    }
    if (axis.absent) { line(pen, x - 3, height - BOTTOM + 2, x + 3, height - BOTTOM + 2, style.muted); label(pen, "none", x + 7, height - BOTTOM + 2, style.muted); }
    const brush = chosen.brushes.get(axis.key);
    if (brush) {
      pen.fillStyle = style.accent;
      pen.globalAlpha = 0.28;
      pen.fillRect(x - 8, brush.y0, 16, brush.y1 - brush.y0);
      pen.globalAlpha = 1;
    }
  }

  const axisAt = (at) => axes.findIndex((_, i) => Math.abs(xOf(i) - at.x) < 16);
  canvas.node.addEventListener("pointerdown", (event) => {
    const at = canvas.at(event), i = axisAt(at);
    if (i < 0) return;
    drag = { axis: axes[i], from: at.y };
    canvas.node.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  canvas.node.addEventListener("pointermove", (event) => {
    const at = canvas.at(event);
    canvas.node.style.cursor = axisAt(at) >= 0 ? "row-resize" : "default";
    if (!drag) { const row = nearestRow(at); hover(row ? row.id : null); if (row) showTip(event, rowText(row)); else hideTip(); return; }
    const y0 = Math.max(TOP - 4, Math.min(drag.from, at.y)), y1 = Math.min(bottom() + 4, Math.max(drag.from, at.y)), back = yOf(drag.axis).back;
    if (y1 - y0 < 3) return;
    chosen.brushes.set(drag.axis.key, { axis: drag.axis, y0, y1, low: back(y1), high: back(y0) });
    showTable.refilter();
  });
  canvas.node.addEventListener("pointerup", (event) => {
    if (drag && Math.abs(canvas.at(event).y - drag.from) < 3 && chosen.brushes.delete(drag.axis.key)) showTable.refilter();
    drag = null;
  });
  canvas.node.addEventListener("pointercancel", () => { drag = null; });
  canvas.node.addEventListener("pointerleave", () => { hover(null); hideTip(); });
  canvas.node.addEventListener("click", (event) => { const at = canvas.at(event); if (axisAt(at) < 0) { const row = nearestRow(at); if (row) pick(row.id); } });

  function nearestRow(at) {
    const i = axes.findIndex((_, n) => n > 0 && at.x < xOf(n));
    if (i < 1 || at.x < xOf(0)) return null;
    const share = (at.x - xOf(i - 1)) / (xOf(i) - xOf(i - 1)), ease = share * share * (3 - 2 * share);
    let found = null, least = 9;
    for (const row of run.rows) {
      if (!chosen.shown.has(row.id)) continue;
      const a = yAt(axes[i - 1], row), d = Math.abs(a + (yAt(axes[i], row) - a) * ease - at.y);
      if (d < least) { least = d; found = row; }
    }
    return found;
  }
  const rowText = (row) => [row.name.split("-")[0], ...run.hyperparameters.map((axis, i) => (row.has[i] ? `${axis.name} ${number(row.values[i])}` : null)).filter(Boolean),
    `best ${run.metric} ${number(row.best, 5)}${row.status === "done" ? "" : `, ${row.status}`}`].join("\n");
  onChange(() => canvas.draw());
  showImportance();
}

function showImportance() {
  const place = byId("importance");
  if (!run.importance.length) {
    place.append(el("p", { class: "hint" }, `Importance needs ${run.importance_needs} configs with different results, and values that more than one config has.`));
    return;
  }
  const box = el("div", { class: "columns" });
  for (const one of run.importance) {
    const fill = el("i");
    fill.style.width = percent(one.share, 2);
    const sure = one.p_value < 0.001 ? "p < 0.001" : `p = ${number(one.p_value, 2)}`;
    const way = one.direction === null || one.p_value > 0.05 || Math.abs(one.direction) < 0.2 ? "" : `, ${one.direction > 0 ? "more" : "less"} is better (ρ ${number(one.direction, 2)})`;
    box.append(el("div", { class: "meter" }, el("span", { class: "name", title: one.name }, one.name), el("span", { class: "track" }, fill), el("span", { class: "amount" }, percent(one.share, 0)),
      el("span", { class: "hint" }, `${sure}${one.p_value > 0.05 ? ": could be chance" : ""}${way}, ${one.groups} groups of ${one.configs} configs`)));
  }
  place.append(box, el("p", { class: "hint" },
    `The configs are ranked by best ${run.metric}, those that diverged last. A hyperparameter's share is how much of the ranks' variance lies between its values (numbers with many values: between groups of equal size), less what chance alone would give (ε²); p is by the test of Kruskal and Wallis. Hyperparameters that only some configs have are judged among those. What several do together is in no one's share, so shares need not add up to 100%.`));
}
