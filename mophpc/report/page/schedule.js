// The schedule as planned and as run: zoom, pan, read.

function showSchedule(visits, others) {
  const place = byId("schedule-plot"), [begin, finish] = run.window;
  if (!visits.size || !(finish > begin)) {
    byId("schedule-controls").append(el("p", { class: "hint" }, "There is no schedule to show."));
    return;
  }
  const painter = new SchedulePainter(visits, others);
  const any = (mode) => painter.lanes[mode].some((lane) => lane.length);
  const span = { t0: Infinity, t1: -Infinity };
  for (const mode of ["real", "planned"]) {
    for (const lane of painter.lanes[mode]) {
      if (!lane.length) continue;
      span.t0 = Math.min(span.t0, visits[mode].start[lane[0]]);
      span.t1 = Math.max(span.t1, visits[mode].end[lane[lane.length - 1]]);
    }
  }
  span.t1 = Math.max(span.t1, finish) + 0.005 * (finish - begin);
  span.t0 -= 0.005 * (finish - begin);
  const view = { ...span, mode: any("real") ? "real" : "planned", colour: "config", config: null, row: 0 };
  view.row = Math.max(10, Math.min(34, Math.floor(520 / run.ranks)));
  if (run.ranks > 52) view.row = 10;

  const canvas = new Canvas(place, AXIS + run.ranks * view.row + 6, (pen, width, height) => { view.config = chosen.config; painter.paint(pen, view, width, height); say(); }, "Schedule of the visits by rank and time");
  canvas.node.tabIndex = 0;
  canvas.node.id = "gantt";
  const overview = new Canvas(byId("schedule-overview"), 44, paintOverview, "Share of the ranks that train, over the whole run; the part that is shown below is marked");

  function draw() { canvas.draw(); overview.draw(); }
  function show(t0, t1) {
    const most = span.t1 - span.t0, least = Math.max(run.quantum_s * 20, most * 1e-7);
    const wide = Math.min(most, Math.max(least, t1 - t0)), middle = (t0 + t1) / 2;
    view.t0 = Math.min(Math.max(span.t0, middle - wide / 2), span.t1 - wide);
    view.t1 = view.t0 + wide;
    draw();
  }
  showSchedule.show = show;
  showSchedule.painter = painter;
  function zoom(factor, share = 0.5) {
    const middle = view.t0 + share * (view.t1 - view.t0), wide = (view.t1 - view.t0) / factor;
    show(middle - share * wide, middle + (1 - share) * wide);
  }
  const pan = (share) => { const by = share * (view.t1 - view.t0); show(view.t0 + by, view.t1 + by); };

  const modes = [["real", "as run"], ["planned", "as planned"], ["both", "both"]].filter(([mode]) => mode === "both" ? any("real") && any("planned") : any(mode));
  const group = el("span", { class: "group", role: "group", "aria-label": "Schedule" });
  for (const [mode, words] of modes) {
    group.append(el("button", { type: "button", "aria-pressed": String(mode === view.mode), data: { mode }, onclick: (event) => {
      view.mode = mode;
      for (const button of group.children) button.setAttribute("aria-pressed", String(button === event.currentTarget));
      draw();
    } }, words));
  }
  const button = (words, title, act) => el("button", { type: "button", title, "aria-label": title, onclick: act }, words);
  byId("schedule-controls").append(group, choice("Colour", [["config", "config"], ["epoch", "epoch"]], "config", (value) => { view.colour = value; draw(); }), el("span", { class: "spring" }),
    el("span", { class: "group" }, button("+", "Zoom in", () => zoom(2)), button("−", "Zoom out", () => zoom(0.5)), button("←", "Earlier", () => pan(-0.5)), button("→", "Later", () => pan(0.5)), button("All", "Show all", () => show(span.t0, span.t1))));

  function say() {
    const parts = [];
    if (chosen.config !== null) parts.push(`The route of ${shortName(chosen.config)}; click it again to see all.`);
    else parts.push("Click a visit to follow its config.");
    parts.push("Drag to move, pinch or Ctrl and wheel to zoom, or drag in the strip above to choose a stretch of time.");
    if (view.mode === "both") parts.push("In each row the plan is above and what was run below.");
    parts.push(painter.hopsDrawn ? "Lines are hops" + (view.mode === "planned" ? "." : ", orange where a rank waited for one.") : "Zoom in, or follow one config, to see hops.");
    if (view.mode !== "real" && run.renewals) parts.push(`The plan was renewed ${plural(run.renewals, "time")}; this is the last one's prediction.`);
    byId("schedule-hint").textContent = parts.join(" ");
  }

  // The strip: how many of the ranks train at a time.
  function paintOverview(pen, width, height) {
    const bins = Math.max(10, Math.round(width - GUTTER)), mode = view.mode === "planned" ? "planned" : "real", total = new Float32Array(bins);
    for (const lane of painter.lanes[mode]) coverage(lane, visits[mode].start, visits[mode].end, span.t0, span.t1, bins, total);
    pen.fillStyle = style.soft;
    pen.fillRect(GUTTER, 2, width - GUTTER, height - 12);
    pen.fillStyle = mode === "planned" ? style.plan : style.compute;
    for (let i = 0; i < bins; i++) {
      const high = (Math.min(run.ranks, total[i]) / run.ranks) * (height - 12);
      pen.fillRect(GUTTER + i, 2 + height - 12 - high, 1, high);
    }
    text(pen, "busy", 4, height / 2 - 4, style.muted);
    const x = scale(span.t0, span.t1, GUTTER, width), a = x(view.t0), b = x(view.t1);
    if (b - a < width - GUTTER - 1) {
      pen.fillStyle = style.card;
      pen.globalAlpha = 0.72;
      pen.fillRect(GUTTER, 2, a - GUTTER, height - 12);
      pen.fillRect(b, 2, width - b, height - 12);
      pen.globalAlpha = 1;
      pen.strokeStyle = style.accent;
      pen.lineWidth = 2;
      pen.strokeRect(a, 1, Math.max(2, b - a), height - 10);
    }
  }
  let brush = null;
  const timeOf = (event) => scale(span.t0, span.t1, GUTTER, overview.width).back(Math.max(GUTTER, overview.at(event).x));
  overview.node.addEventListener("pointerdown", (event) => { brush = timeOf(event); overview.node.setPointerCapture(event.pointerId); });
  overview.node.addEventListener("pointermove", (event) => { if (brush !== null) { const to = timeOf(event); if (Math.abs(to - brush) > 0.004 * (span.t1 - span.t0)) show(Math.min(brush, to), Math.max(brush, to)); } });
  overview.node.addEventListener("pointerup", (event) => {
    const to = timeOf(event), wide = view.t1 - view.t0;
    if (Math.abs(to - brush) <= 0.004 * (span.t1 - span.t0)) show(to - wide / 2, to + wide / 2);
    brush = null;
  });

  // Pointers on the schedule: one moves, two zoom.
  const held = new Map();
  let moved = 0;
  canvas.node.addEventListener("pointerdown", (event) => { held.set(event.pointerId, canvas.at(event)); moved = 0; canvas.node.setPointerCapture(event.pointerId); hideTip(); });
  canvas.node.addEventListener("pointermove", (event) => {
    const at = canvas.at(event), last = held.get(event.pointerId), room = canvas.width - GUTTER;
    if (!last) { read(event, at); return; }
    const others = [...held].filter(([id]) => id !== event.pointerId).map(([, point]) => point), per = (view.t1 - view.t0) / room;
    if (!others.length) {
      moved += Math.abs(at.x - last.x) + Math.abs(at.y - last.y);
      if (moved > 3) show(view.t0 - (at.x - last.x) * per, view.t1 - (at.x - last.x) * per);
    } else {
      moved = 10;
      const before = Math.abs(last.x - others[0].x), now = Math.abs(at.x - others[0].x);
      if (before > 5 && now > 5) zoom(now / before, ((at.x + others[0].x) / 2 - GUTTER) / room);
    }
    held.set(event.pointerId, at);
  });
  const drop = (event) => held.delete(event.pointerId);
  canvas.node.addEventListener("pointerup", drop);
  canvas.node.addEventListener("pointercancel", drop);
  canvas.node.addEventListener("pointerleave", hideTip);
  canvas.node.addEventListener("click", (event) => { if (moved > 3) return; const found = under(canvas.at(event)); if (found) pick(visits.config[found.i]); else if (chosen.config !== null) pick(chosen.config); });
  canvas.node.addEventListener("dblclick", (event) => zoom(3, (canvas.at(event).x - GUTTER) / (canvas.width - GUTTER)));
  canvas.node.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.005)), Math.max(0, (canvas.at(event).x - GUTTER) / (canvas.width - GUTTER)));
    } else if (Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey) {
      event.preventDefault();
      pan((event.deltaX || event.deltaY) / canvas.width);
    }
  }, { passive: false });
  canvas.node.addEventListener("keydown", (event) => {
    const act = { "+": () => zoom(2), "=": () => zoom(2), "-": () => zoom(0.5), ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2), 0: () => show(span.t0, span.t1) }[event.key];
    if (act) { event.preventDefault(); act(); }
  });

  function under(at) {
    const rank = Math.floor((at.y - AXIS) / view.row);
    if (rank < 0 || rank >= run.ranks || at.x < GUTTER) return null;
    const bands = painter.bands(view), y = at.y - AXIS - rank * view.row;
    const band = bands.find((b) => y < b.top + b.height + 1) ?? bands[bands.length - 1];
    const time = scale(view.t0, view.t1, GUTTER, canvas.width).back(at.x), lane = painter.lanes[band.mode][rank], { start, end } = visits[band.mode];
    const slack = (1.5 * (view.t1 - view.t0)) / canvas.width, k = firstAfter(lane, end, time - slack);
    return k < lane.length && start[lane[k]] <= time + slack ? { i: lane[k], mode: band.mode } : null;
  }
  function read(event, at) {
    const found = under(at);
    canvas.node.style.cursor = found ? "pointer" : "grab";
    if (!found) { hideTip(); return; }
    const { i } = found, span_ = (mode) => `${seconds(visits[mode].start[i])} to ${seconds(visits[mode].end[i])}, ${seconds(visits[mode].end[i] - visits[mode].start[i])}`;
    const lines = [rowOf.get(visits.config[i])?.name ?? shortName(visits.config[i]), `epoch ${visits.epoch[i]}, shard ${visits.shard[i]}, visit ${visits.step[i]} on rank ${visits.rank[i]}`];
    if (!Number.isNaN(visits.real.end[i])) lines.push(`run: ${span_("real")}`);
    if (!Number.isNaN(visits.planned.end[i])) lines.push(`plan: ${span_("planned")}`);
    if (visits.hopSource[i] >= 0) lines.push(`came from rank ${visits.hopSource[i]}${visits.exposed[i] > 0 ? `, waited for ${seconds(visits.exposed[i])}` : ", hidden"}`);
    showTip(event, lines.join("\n"));
  }
  onChange((what) => { if (what !== "over" && what !== "filter") draw(); });
}
