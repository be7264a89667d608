// Where each rank's time went, and what moved between ranks.

function swatch(name) {
  const found = el("i", { class: "swatch" });
  found.style.background = `var(--${name})`;
  return found;
}

// A bar of parts; widths are shares of `whole`.
function stack(values, names, whole, thin = false) {
  const bar = el("div", { class: `stack ${thin ? "thin" : ""}` });
  values.forEach((value, i) => {
    if (!(value > 0)) return;
    const part = el("i", { title: `${names[i].replace("_", " ")}: ${thin ? bytes(value) : `${seconds(value)}, ${percent(value / whole)}`}` });
    part.style.width = `${(100 * value) / whole}%`;
    part.style.background = `var(--${names[i]})`;
    bar.append(part);
  });
  return bar;
}

function showRanks() {
  const place = byId("ranks-body");
  if (!run.spent.length) {
    place.append(el("p", { class: "hint" }, "No rank has come to its end, which is when it says where its time went."));
    return;
  }
  const totals = partTotals(), whole = totals.reduce((a, b) => a + b, 0) || 1;
  place.append(el("div", { class: "legend" }, ...run.parts.map((name, i) => el("span", {}, swatch(name), `${name.replace("_", " ")} ${percent(totals[i] / whole)}`))));
  const longest = Math.max(...run.spent.map((rank) => rank.seconds.reduce((a, b) => a + b, 0))) || 1;
  const rows = el("div", { class: run.spent.length > 32 ? "tall" : "" });
  const row = (name, values, most, total) => el("div", { class: "stack-row" }, el("span", {}, name), stack(values, run.parts, most), el("span", { class: "end" }, seconds(total)));
  for (const rank of run.spent) {
    const total = rank.seconds.reduce((a, b) => a + b, 0);
    const line = row(`${rank.rank}`, rank.seconds, longest, total);
    line.dataset.seconds = JSON.stringify(rank.seconds);
    rows.append(line);
  }
  if (run.spent.length > 1) rows.append(row("all", totals, whole, whole));
  place.append(rows, el("p", { class: "hint" }, "Of the time from a rank's first visit to its last, measured on the rank. Exposed hop: it had nothing to train while a state was on its way. Idle: all other waiting."));
}

function showTraffic() {
  const place = byId("traffic-body"), t = run.traffic;
  if (!t.hops) {
    place.append(el("p", { class: "hint" }, run.ranks > 1 ? "No hop was recorded." : "One rank has no hops."));
    return;
  }
  const formula = run.expense.ways.find((way) => way.formula === "k m (p-1) S");
  place.append(el("div", { class: "tiles" },
    tile("Hops", t.hops.toLocaleString("en"), `${t.hidden.toLocaleString("en")} hidden whole behind training`),
    tile("States", bytes(t.state_bytes), formula ? `k m (p−1) S says ${bytes(formula.bytes_moved)}` : ""),
    tile("Headers", bytes(t.header_bytes), `${percent(t.header_bytes / (t.state_bytes + t.header_bytes), 2)} of all bytes`),
    tile("In transfer", seconds(t.transfer_s), `${seconds(t.exposed_s)} of it waited for`)));
  const rows = el("div", { class: run.ranks > 32 ? "tall" : "" }), most = Math.max(...t.sent_bytes, ...t.received_bytes) || 1;
  for (let rank = 0; rank < run.ranks; rank++) {
    const bars = el("div", {}, stack([t.sent_bytes[rank]], ["compute"], most, true), stack([t.received_bytes[rank]], ["evaluation"], most, true));
    bars.title = `rank ${rank}: ${t.sent_hops[rank]} hops out, ${bytes(t.sent_bytes[rank])} and ${bytes(t.sent_header_bytes[rank])} of headers; ${t.received_hops[rank]} hops in, ${bytes(t.received_bytes[rank])}`;
    rows.append(el("div", { class: "stack-row" }, el("span", {}, String(rank)), bars, el("span", { class: "end" }, bytes(t.sent_bytes[rank]))));
  }
  const head = ["rank", "hops out", "states sent", "headers sent", "hops in", "states received"], body = el("tbody");
  for (let rank = 0; rank < run.ranks; rank++) {
    const cells = [rank, t.sent_hops[rank], bytes(t.sent_bytes[rank]), bytes(t.sent_header_bytes[rank]), t.received_hops[rank], bytes(t.received_bytes[rank])];
    body.append(el("tr", {}, ...cells.map((words) => el("td", {}, String(words)))));
  }
  const numbers = el("details", {}, el("summary", {}, "As numbers"), el("div", { class: "scroll tall" }, el("table", { id: "sent" }, el("thead", {}, el("tr", {}, ...head.map((words) => el("th", { scope: "col" }, words)))), body)));
  const sent = el("div", {}, el("h3", {}, "By rank"), el("div", { class: "legend" }, el("span", {}, swatch("compute"), "sent"), el("span", {}, swatch("evaluation"), "received")), rows, numbers);
  const columns = el("div", { class: "columns" }, sent);
  place.append(columns);
  if (t.matrix.length > 1) {
    const box = el("div", {}, el("h3", {}, "From rank to rank"));
    columns.append(box);
    showMatrix(box, t.matrix);
  }
}

function showMatrix(box, matrix) {
  const size = matrix.length, most = Math.max(...matrix.flat()) || 1, plot = el("div", { class: "plot" });
  box.append(plot);
  const side = () => Math.min(26, (canvas.width - 40) / size);
  const canvas = new Canvas(plot, 60, (pen) => {
    const cell = side(), wanted = Math.ceil(cell * size) + 26;
    if (canvas.height !== wanted) { canvas.height = wanted; canvas.draw(); return; }
    const every = Math.ceil(16 / cell);
    for (let a = 0; a < size; a++) {
      if (a % every === 0) {
        text(pen, String(a), 32, 22 + (a + 0.5) * cell, style.muted, "right");
        text(pen, String(a), 38 + (a + 0.5) * cell, 10, style.muted, "center");
      }
      for (let b = 0; b < size; b++) {
        pen.fillStyle = style.soft;
        pen.fillRect(38 + b * cell, 22 + a * cell, cell - 1, cell - 1);
        pen.globalAlpha = matrix[a][b] ? 0.12 + (0.88 * matrix[a][b]) / most : 0;
        pen.fillStyle = style.accent;
        pen.fillRect(38 + b * cell, 22 + a * cell, cell - 1, cell - 1);
        pen.globalAlpha = 1;
      }
    }
  }, "Bytes sent from each rank (rows) to each rank (columns)");
  canvas.node.addEventListener("pointermove", (event) => {
    const at = canvas.at(event), a = Math.floor((at.y - 22) / side()), b = Math.floor((at.x - 38) / side());
    if (matrix[a]?.[b] === undefined) hideTip(); else showTip(event, `rank ${a} to rank ${b}: ${bytes(matrix[a][b])}`);
  });
  canvas.node.addEventListener("pointerleave", hideTip);
  box.append(el("p", { class: "hint" }, "Rows send, columns receive; the stronger the colour, the more bytes."));
  onChange((what) => { if (what === "theme") canvas.draw(); });
}

function showSettings() {
  const place = byId("settings-body");
  if (run.clocks.length > 1) {
    const worst = Math.max(...run.clocks.map((clock) => clock.error_s)), drift = Math.max(...run.clocks.map((clock) => Math.abs(clock.drift_s ?? 0)));
    place.append(el("p", {}, `All times are on rank 0's clock. The ranks' clocks were compared with it by short messages: they were up to ${seconds(Math.max(...run.clocks.map((clock) => Math.abs(clock.offset_s))))} apart, known to ${seconds(worst)}, and drifted by up to ${seconds(drift)}.`));
    const rows = run.clocks.map((clock) => el("tr", {}, ...[clock.rank, seconds(clock.offset_s), seconds(clock.error_s), clock.drift_s === null ? "–" : seconds(clock.drift_s)].map((words) => el("td", {}, String(words)))));
    place.append(el("details", {}, el("summary", {}, "Clocks"), el("div", { class: "scroll tall" }, el("table", {}, el("thead", {}, el("tr", {}, ...["rank", "offset", "error at most", "drift"].map((words) => el("th", {}, words)))), el("tbody", {}, ...rows)))));
  }
  if (run.settings) place.append(el("details", {}, el("summary", {}, "experiment.toml"), el("pre", {}, run.settings)));
  place.append(el("p", { class: "hint" }, `Made by mophpc ${run.mophpc}. This page needs no network, and asks for none.`));
}
