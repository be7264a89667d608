// Paints the schedule: only what can be seen, and shares of time where visits are thinner than pixels.

const GUTTER = 46, AXIS = 24, MOST_HOPS = 4000, DENSE_PX = 1.5;

// Per rank the visits of a mode ("real" or "planned") in order of time.
function makeLanes(visits, mode) {
  const { start, end } = visits[mode], rank = mode === "real" ? visits.rank : visits.plannedRank;
  const lanes = Array.from({ length: run.ranks }, () => []);
  for (let i = 0; i < visits.size; i++) if (!Number.isNaN(end[i]) && lanes[rank[i]]) lanes[rank[i]].push(i);
  return lanes.map((lane) => {
    const found = Int32Array.from(lane);
    if (found.some((v, i) => i > 0 && start[v] < start[found[i - 1]])) found.sort((a, b) => start[a] - start[b]);
    return found;
  });
}

// The first entry of a lane that ends after a time.
function firstAfter(lane, end, time) {
  let low = 0, high = lane.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (end[lane[middle]] < time) low = middle + 1; else high = middle;
  }
  return low;
}

// Share of each of `bins` parts of a stretch of time in which the spans keep their lane busy.
function coverage(lane, start, end, t0, t1, bins, into = new Float32Array(bins)) {
  const per = bins / (t1 - t0);
  for (let k = firstAfter(lane, end, t0); k < lane.length; k++) {
    const i = lane[k];
    if (start[i] > t1) break;
    const a = Math.max(0, (start[i] - t0) * per), b = Math.min(bins, (end[i] - t0) * per);
    const first = Math.floor(a), last = Math.min(bins - 1, Math.floor(b));
    if (first === last) { into[first] += b - a; continue; }
    into[first] += first + 1 - a;
    for (let bin = first + 1; bin < last; bin++) into[bin] += 1;
    into[last] += b - last;
  }
  return into;
}

function paintTimeAxis(pen, x, view, width, height) {
  const span = view.t1 - view.t0;
  const [unit, size] = span >= 7200 ? ["h", 3600] : span >= 600 ? ["min", 60] : span >= 0.05 ? ["s", 1] : ["ms", 1e-3];
  for (const time of ticks(view.t0 / size, view.t1 / size, Math.max(2, width / 110))) {
    const at = Math.round(x(time * size)) + 0.5;
    line(pen, at, AXIS - 4, at, height, style.line);
    text(pen, `${number(time, 8)} ${unit}`, at, 10, style.muted, at > width - 30 ? "right" : at < GUTTER + 20 ? "left" : "center");
  }
}

class SchedulePainter {
  constructor(visits, others) {
    this.visits = visits;
    this.others = others;
    this.lanes = { real: makeLanes(visits, "real"), planned: makeLanes(visits, "planned") };
    this.otherLanes = Array.from({ length: run.ranks }, () => []);
    for (let i = 0; i < others.rank.length; i++) this.otherLanes[others.rank[i]]?.push(i);
    this.hops = { real: this.sortedHops("real"), planned: this.sortedHops("planned") };
    this.hopsDrawn = true;
    this.visitsDrawn = 0;
  }

  // Hops by their start, and for each the latest end among those up to it.
  sortedHops(mode) {
    const all = [];
    for (let i = 0; i < this.visits.size; i++) {
      const hop = this.hop(mode, i);
      if (hop && !Number.isNaN(hop.start) && !Number.isNaN(hop.end)) all.push(hop);
    }
    all.sort((a, b) => a.start - b.start);
    let latest = -Infinity;
    return { all, latest: Float64Array.from(all, (hop) => (latest = Math.max(latest, hop.end))) };
  }

  // The bands of a rank's row: top and height of each mode that is shown.
  bands(view) {
    const pad = view.row > 20 ? 3 : 1, inner = view.row - 2 * pad;
    if (view.mode !== "both") return [{ mode: view.mode, top: pad, height: inner }];
    const plan = Math.max(3, Math.round(inner * 0.32));
    return [{ mode: "planned", top: pad, height: plan }, { mode: "real", top: pad + plan + 1, height: inner - plan - 1 }];
  }

  paint(pen, view, width, height) {
    const x = scale(view.t0, view.t1, GUTTER, width);
    for (let r = 0; r < run.ranks; r++) {
      const top = AXIS + r * view.row;
      pen.fillStyle = style.soft;
      pen.fillRect(GUTTER, top + 1, width - GUTTER, view.row - 2);
      if (view.row >= 12 || r % Math.ceil(12 / view.row) === 0) text(pen, String(r), GUTTER - 10, top + view.row / 2, style.muted, "right");
    }
    text(pen, "rank", 4, 10, style.muted);
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER, 0, width - GUTTER, height);
    pen.clip();
    paintTimeAxis(pen, x, view, width, height);
    this.visitsDrawn = 0;
    const boxes = [];
    for (let r = 0; r < run.ranks; r++) {
      for (const band of this.bands(view)) {
        const box = { mode: band.mode, top: AXIS + r * view.row + band.top, height: band.height };
        this.paintLane(pen, view, x, width, this.lanes[band.mode][r], box, boxes);
        if (band.mode === "real") this.paintOthers(pen, view, x, r, box);
      }
    }
    this.paintHops(pen, view, x, view.config === null ? Math.min(MOST_HOPS, 0.6 * (width - GUTTER)) : MOST_HOPS);
    pen.font = `11px ${style.font}`;
    for (const [words, at, y] of boxes) text(pen, words, at, y, "#fff", "center");
    pen.font = `12px ${style.font}`;
    pen.restore();
  }

  paintLane(pen, view, x, width, lane, box, boxes) {
    const { start, end } = this.visits[box.mode], config = this.visits.config, first = firstAfter(lane, end, view.t0);
    let last = first, sum = 0;
    while (last < lane.length && start[lane[last]] <= view.t1) { sum += end[lane[last]] - start[lane[last]]; last++; }
    const count = last - first, perSecond = (width - GUTTER) / (view.t1 - view.t0);
    const dense = count > 200 && (sum / count) * perSecond < DENSE_PX;
    if (dense) {
      const bins = Math.round(width - GUTTER), share = coverage(lane, start, end, view.t0, view.t1, bins);
      pen.fillStyle = box.mode === "planned" ? style.plan : style.compute;
      for (let i = 0; i < bins; i++) {
        if (share[i] < 0.01) continue;
        pen.globalAlpha = Math.min(1, share[i]) * (view.config === null ? 0.85 : 0.3);
        pen.fillRect(GUTTER + i, box.top, 1, box.height);
      }
      pen.globalAlpha = 1;
      this.visitsDrawn += bins;
    }
    for (let k = first; k < last; k++) {
      const i = lane[k], own = view.config === null || config[i] === view.config;
      if (dense && (view.config === null || !own)) continue;
      const left = x(start[i]), wide = Math.max(dense ? 1.5 : 0.6, x(end[i]) - left - (perSecond * (end[i] - start[i]) > 4 ? 0.8 : 0));
      pen.fillStyle = this.colour(view, i);
      pen.globalAlpha = (own ? 1 : 0.16) * (box.mode === "planned" && view.mode === "both" ? 0.6 : 1);
      pen.fillRect(left, box.top, wide, box.height);
      this.visitsDrawn++;
      const words = String(config[i]), room = Math.min(x(end[i]), width) - Math.max(left, GUTTER);
      if (own && box.height >= 12 && room > 7 * words.length + 6) boxes.push([words, (Math.min(x(end[i]), width) + Math.max(left, GUTTER)) / 2, box.top + box.height / 2 + 0.5]);
    }
    pen.globalAlpha = 1;
  }

  colour(view, i) {
    if (view.colour === "epoch") return kindColour(this.visits.epoch[i]);
    if (view.config !== null && this.visits.config[i] === view.config) return view.config === run.best ? style.best : style.accent;
    return configColour(this.visits.config[i]);
  }

  // Evaluations and checkpoints, where they are wide enough to be seen.
  paintOthers(pen, view, x, rank, box) {
    const { start, end, kind } = this.others, lane = this.otherLanes[rank];
    let seen = 0;
    for (let k = firstAfter(lane, end, view.t0); k < lane.length && start[lane[k]] <= view.t1; k++) {
      const i = lane[k], wide = x(end[i]) - x(start[i]);
      if (wide < 0.7 || ++seen > 3000) continue;
      pen.fillStyle = kind[i] === 0 ? style.evaluation : style.checkpoint;
      pen.fillRect(x(start[i]), box.top + box.height * 0.25, wide, box.height * 0.5);
    }
  }

  // Where a hop left and where and when it came, in a mode; null if nothing is known of it.
  hop(mode, i) {
    const v = this.visits, before = v.before[i];
    if (mode === "real") {
      if (v.hopSource[i] < 0 || Number.isNaN(v.hopEnd[i])) return null;
      return { visit: i, from: v.hopSource[i], to: v.rank[i], start: v.hopStart[i], end: v.hopEnd[i], exposed: v.exposed[i] };
    }
    if (before < 0 || v.plannedRank[before] === v.plannedRank[i]) return null;
    return { visit: i, from: v.plannedRank[before], to: v.plannedRank[i], start: v.planned.end[before], end: v.planned.start[i], exposed: 0 };
  }

  // Not more than `most` of them: then nobody could tell them apart.
  paintHops(pen, view, x, most) {
    const mode = view.mode === "planned" ? "planned" : "real", { all, latest } = this.hops[mode], found = [];
    let low = 0, high = all.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (all[middle].start <= view.t1) low = middle + 1; else high = middle;
    }
    this.hopsDrawn = true;
    for (let k = low - 1; k >= 0 && latest[k] >= view.t0; k--) {
      const hop = all[k];
      if (hop.end < view.t0 || (view.config !== null && this.visits.config[hop.visit] !== view.config)) continue;
      found.push(hop);
      if (found.length > most) { this.hopsDrawn = false; return; }
    }
    const alpha = view.config !== null ? (found.length > 200 ? 0.45 : 0.95) : Math.max(0.14, Math.min(0.6, 60 / found.length));
    const middle = (rank) => AXIS + (rank + 0.5) * view.row;
    for (const late of [false, true]) {
      pen.beginPath();
      pen.globalAlpha = late ? Math.min(1, alpha + 0.25) : alpha;
      pen.strokeStyle = late ? style.exposed_hop : style.ink;
      pen.lineWidth = view.config !== null && found.length <= 200 ? 1.6 : 1;
      for (const hop of found) {
        if (hop.exposed > 0 !== late) continue;
        const x0 = x(hop.start), x1 = Math.max(x(hop.end), x0 + 1);
        pen.moveTo(x0, middle(hop.from));
        pen.lineTo(x1, middle(hop.to));
      }
      pen.stroke();
    }
    pen.globalAlpha = 1;
    pen.fillStyle = style.ink;
    if (found.length < 120 || (view.config !== null && found.length < 600)) for (const hop of found) { pen.beginPath(); pen.arc(x(hop.end), middle(hop.to), 1.8, 0, 7); pen.fill(); }
  }
}
