// Learning curves of all configs; the best one in front.

const curveView = { metric: 0, axis: "epoch", colour: "result", log: false };

function curveColours() {
  const by = curveView.colour;
  if (by === "result") {
    const ranked = run.rows.filter((row) => Number.isFinite(score(row))).sort((a, b) => score(a) - score(b));
    const place = new Map(ranked.map((row, i) => [row.id, ranked.length < 2 ? 1 : i / (ranked.length - 1)]));
    return { of: (id) => (place.has(id) ? scaleColour(place.get(id)) : style.bad), legend: [[scaleColour(0), "worst"], [scaleColour(0.5), "middle"], [scaleColour(1), "best"]] };
  }
  const index = Number(by), axis = run.hyperparameters[index];
  const values = run.rows.filter((row) => row.has[index]).map((row) => row.values[index]);
  const distinct = [...new Set(values)];
  if (axis.kind === "text" || distinct.length <= 6) {
    if (axis.kind !== "text") distinct.sort((a, b) => a - b);
    const place = new Map(distinct.map((value, i) => [value, i]));
    const of = axis.kind === "text" ? kindColour : (i) => scaleColour(distinct.length < 2 ? 1 : i / (distinct.length - 1));
    return { of: (id) => { const row = rowOf.get(id); return row.has[index] ? of(place.get(row.values[index])) : style.plan; },
      legend: distinct.slice(0, 12).map((value, i) => [of(i), `${axis.name} ${number(value)}`]) };
  }
  const low = Math.min(...values), high = Math.max(...values), at = scale(low, high, 0, 1, axis.kind === "log");
  return { of: (id) => { const row = rowOf.get(id); return row.has[index] ? scaleColour(at(row.values[index])) : style.plan; },
    legend: [[scaleColour(0), `${axis.name} ${number(low)}`], [scaleColour(1), number(high)]] };
}

function showCurves(curves) {
  const place = byId("curves-plot");
  if (![...curves.values()].some((points) => points.length)) {
    place.append(el("p", { class: "hint" }, "No config has ended an epoch."));
    return;
  }
  const names = run.metrics;
  curveView.metric = Math.max(0, names.indexOf(run.metric));
  const legend = el("div", { class: "legend" });
  const timed = [...curves.values()].some((points) => points.some((point) => Number.isFinite(point.time)));
  const logBox = el("input", { type: "checkbox", onchange: () => { curveView.log = logBox.checked; canvas.draw(); } });
  const set = (name) => (value) => { curveView[name] = name === "metric" ? Number(value) : value; refresh(); };
  byId("curves-controls").append(
    choice("Metric", names.map((name, i) => [String(i), name]), String(curveView.metric), set("metric")),
    choice("Over", [["epoch", "epochs"], ...(timed ? [["time", "time of the run"]] : [])], "epoch", set("axis")),
    choice("Colour", [["result", "result"], ...run.hyperparameters.map((axis, i) => [String(i), axis.name])], "result", set("colour")),
    el("label", {}, logBox, "logarithmic"));
  place.before(legend);

  let colours, plot = null;
  const canvas = new Canvas(place, 380, paint, "Learning curves of all configs");
  if (innerWidth < 720) canvas.height = 300;
  const refresh = () => {
    colours = curveColours();
    legend.replaceChildren(...colours.legend.map(([colour, words]) => {
      const swatch = el("i", { class: "swatch" });
      swatch.style.background = colour;
      return el("span", {}, swatch, words);
    }));
    if (rowOf.has(run.best)) legend.append(el("span", {}, (() => { const s = el("i", { class: "swatch" }); s.style.background = style.best; return s; })(), `best: ${shortName(run.best)}`));
    canvas.draw();
  };

  function limits() {
    const xs = [], ys = [];
    for (const [id, points] of curves) {
      if (!chosen.shown.has(id)) continue;
      for (const point of points) {
        const x = point[curveView.axis], y = point.values[curveView.metric];
        if (Number.isFinite(x) && Number.isFinite(y) && (!curveView.log || y > 0)) { xs.push(x); ys.push(y); }
      }
    }
    ys.sort((a, b) => a - b);
    if (!ys.length) return null;
    let low = ys[0], high = ys[ys.length - 1], cut = 0;
    const most = ys[Math.floor(0.97 * (ys.length - 1))], least = ys[Math.floor(0.03 * ys.length)];
    // Few values that are far off, as of a config that diverges, must not flatten all others.
    if (!curveView.log && most > low && high - most > 2 * (most - low)) { high = most + 0.1 * (most - low); cut = ys.filter((y) => y > high).length; }
    if (!curveView.log && high > least && least - low > 2 * (high - least)) { low = least - 0.1 * (high - least); cut += ys.filter((y) => y < low).length; }
    if (low === high) { low -= Math.abs(low) * 0.05 || 0.5; high += Math.abs(high) * 0.05 || 0.5; if (curveView.log) low = high / 2; }
    const room = curveView.log ? 0 : 0.04 * (high - low);
    let left = Infinity, right = -Infinity;
    for (const x of xs) { if (x < left) left = x; if (x > right) right = x; }
    if (left === right) { left -= 0.5; right += 0.5; }
    return { low: low - room, high: high + room, left, right, cut };
  }

  function paint(pen, width, height) {
    const found = limits();
    plot = null;
    if (!found) { text(pen, "Nothing to show: the filter lets no config through, or no value can be drawn.", 12, height / 2); return; }
    const yTicks = curveView.log ? logTicks(found.low, found.high) : ticks(found.low, found.high, height / 60);
    const margin = 14 + Math.max(...yTicks.map((v) => pen.measureText(number(v)).width));
    const x = scale(found.left, found.right, margin, width - (width < 500 ? 16 : 54)), y = scale(found.low, found.high, height - 40, 12, curveView.log);
    for (const value of yTicks) {
      line(pen, margin, y(value), width - 4, y(value), style.line);
      text(pen, number(value), margin - 8, y(value), style.muted, "right");
    }
    const xTicks = ticks(found.left, found.right, Math.min(12, width / 70)).filter((v) => curveView.axis !== "epoch" || Number.isInteger(v));
    for (const value of xTicks) text(pen, number(value), x(value), height - 26, style.muted, "center");
    text(pen, curveView.axis === "epoch" ? "epoch" : "seconds since the start", (margin + width) / 2, height - 9, style.muted, "center");
    paintRungs(pen, x, height);
    plot = { x, y, margin };
    pen.save();
    pen.beginPath();
    pen.rect(margin - 6, 4, width - margin + 6, height - 42);
    pen.clip();
    const front = [run.best, chosen.config, chosen.over].filter((id) => id !== null && chosen.shown.has(id));
    const alpha = Math.max(0.25, Math.min(0.85, 18 / chosen.shown.size));
    for (const [id, points] of curves) {
      if (!chosen.shown.has(id) || front.includes(id)) continue;
      pen.globalAlpha = chosen.config !== null ? alpha * 0.45 : alpha;
      paintCurve(pen, id, points, colours.of(id), 1.3);
    }
    pen.globalAlpha = 1;
    for (const id of front) {
      const colour = id === run.best ? style.best : style.accent;
      paintCurve(pen, id, curves.get(id) ?? [], style.card, 5);
      paintCurve(pen, id, curves.get(id) ?? [], colour, id === run.best ? 2.6 : 2.2);
    }
    pen.restore();
    for (const id of new Set(front)) paintName(pen, id, curves.get(id) ?? [], width);
    const notes = [];
    if (found.cut) notes.push(`${plural(found.cut, "value")} beyond the axis.`);
    notes.push(...markWords());
    byId("curves-hint").textContent = `Point at a curve to read it, click it to keep it in front everywhere on the page. ${notes.join(" ")}`;
  }

  function paintCurve(pen, id, points, colour, thick) {
    const m = curveView.metric, row = rowOf.get(id);
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineWidth = thick;
    pen.beginPath();
    let open = false, last = null;
    for (const point of points) {
      const px = point[curveView.axis], value = point.values[m];
      if (!Number.isFinite(px) || !Number.isFinite(value) || (curveView.log && value <= 0)) { open = false; continue; }
      const at = [plot.x(px), plot.y(value)];
      if (open) pen.lineTo(...at); else pen.moveTo(...at);
      open = true;
      last = at;
    }
    pen.stroke();
    if (!last) return;
    if (points.length === 1) { pen.beginPath(); pen.arc(...last, 2.5, 0, 7); pen.fill(); }
    paintEnd(pen, row.status, last, thick);
    for (const step of row.lineage) paintCopy(pen, id, step);
  }

  // How a config ended: a square for stopped, a cross for diverged or failed, a ring for unfinished.
  function paintEnd(pen, status, [x, y], thick) {
    const r = 2.2 + thick * 0.7;
    pen.lineWidth = Math.max(1.5, thick * 0.8);
    pen.beginPath();
    if (status === "stopped") { pen.fillRect(x - r, y - r, 2 * r, 2 * r); return; }
    if (status === "diverged" || status === "failed") {
      pen.moveTo(x - r, y - r); pen.lineTo(x + r, y + r); pen.moveTo(x - r, y + r); pen.lineTo(x + r, y - r);
    } else if (status === "unfinished") pen.arc(x, y, r, 0, 7);
    pen.stroke();
  }

  // A state taken over: a dotted line from where the source's curve stood, and a diamond.
  function paintCopy(pen, id, step) {
    const place = (config, epoch) => {
      const point = (curves.get(config) ?? []).find((p) => p.epoch === epoch);
      const value = point?.values[curveView.metric];
      return point && Number.isFinite(value) && Number.isFinite(point[curveView.axis]) ? [plot.x(point[curveView.axis]), plot.y(value)] : null;
    };
    const from = place(step.source, step.epoch - 1), to = place(id, step.epoch);
    if (from && to) line(pen, ...from, ...to, pen.strokeStyle, 1.2, [2, 3]);
    const at = to ?? from;
    if (!at) return;
    const [x, y] = at, r = 4.5;
    pen.beginPath();
    pen.moveTo(x, y - r); pen.lineTo(x + r, y); pen.lineTo(x, y + r); pen.lineTo(x - r, y);
    pen.fill();
  }

  // Where decisions were made: after so many epochs, or at their time.
  function paintRungs(pen, x, height) {
    const rungs = new Map();
    for (const decision of run.decisions) {
      if (decision.kind === "start" || decision.kind === "") continue;
      const at = curveView.axis === "epoch" ? (decision.epochs === null ? null : decision.epochs - 1) : decision.at;
      if (at === null) continue;
      const key = curveView.axis === "epoch" ? at : Math.round(at * 100) / 100;
      const counts = rungs.get(key) ?? {};
      counts[decision.kind] = (counts[decision.kind] ?? 0) + 1;
      rungs.set(key, counts);
    }
    if (rungs.size > 60) return;
    for (const [at, counts] of rungs) {
      line(pen, x(at), 8, x(at), height - 40, style.plan, 1, [2, 4]);
      if (rungs.size <= 12 && counts.stop) text(pen, `${counts.stop} stopped`, x(at) + 4, height - 48, style.muted);
    }
  }

  function markWords() {
    const words = [], has = (status) => run.rows.some((row) => row.status === status);
    if (has("stopped")) words.push("Square: stopped.");
    if (has("diverged") || has("failed")) words.push("Cross: diverged or failed.");
    if (has("unfinished")) words.push("Ring: unfinished.");
    if (run.rows.some((row) => row.lineage.length)) words.push("Diamond: took over another config's state.");
    if (run.decisions.length) words.push("Dotted verticals: where decisions were made.");
    return words;
  }

  function paintName(pen, id, points, width) {
    const seen = points.filter((p) => Number.isFinite(p[curveView.axis]) && Number.isFinite(p.values[curveView.metric]));
    const last = seen[seen.length - 1];
    if (!last || (curveView.log && last.values[curveView.metric] <= 0)) return;
    const px = plot.x(last[curveView.axis]), py = plot.y(last.values[curveView.metric]), inside = px > width - 50;
    if (py < 4 || py > canvas.height - 38) return;
    label(pen, shortName(id), inside ? px - 8 : px + 8, inside ? py - 12 : py, id === run.best ? style.best : style.accent, inside ? "right" : "left");
  }

  // How far a place is from the line between two others; NaN where there is no line.
  function gap(at, a, b) {
    const dx = b.x - a.x, dy = b.y - a.y, along = ((at.x - a.x) * dx + (at.y - a.y) * dy) / (dx * dx + dy * dy || 1), share = Math.min(1, Math.max(0, along));
    return Math.hypot(a.x + share * dx - at.x, a.y + share * dy - at.y);
  }

  function nearest(at) {
    let found = null, least = 22;
    if (!plot) return null;
    for (const [id, points] of curves) {
      if (!chosen.shown.has(id)) continue;
      let last = null;
      for (const point of points) {
        const here = { point, x: plot.x(point[curveView.axis]), y: plot.y(point.values[curveView.metric]) };
        const d = gap(at, last ?? here, here);
        if (d < least) {
          const close = last && at.x - last.x < here.x - at.x ? last : here;
          least = d;
          found = { id, point: close.point, value: close.point.values[curveView.metric] };
        }
        last = Number.isFinite(here.x) && Number.isFinite(here.y) ? here : null;
      }
    }
    return found;
  }
  canvas.node.addEventListener("pointermove", (event) => {
    const found = nearest(canvas.at(event));
    hover(found ? found.id : null);
    if (!found) { hideTip(); return; }
    const row = rowOf.get(found.id), copies = row.lineage.filter((step) => step.epoch <= found.point.epoch);
    const more = copies.length ? `\nstate of ${shortName(copies[copies.length - 1].source)} since epoch ${copies[copies.length - 1].epoch}` : "";
    showTip(event, `${row.name}\nepoch ${found.point.epoch}: ${run.metrics[curveView.metric]} ${number(found.value, 5)}${more}`);
  });
  canvas.node.addEventListener("pointerleave", () => { hover(null); hideTip(); });
  canvas.node.addEventListener("click", (event) => { const found = nearest(canvas.at(event)); if (found) pick(found.id); });
  onChange((what) => (what === "theme" ? refresh() : canvas.draw()));
  refresh();
}
