// What the run cost, beside other ways by formula.

function showExpense() {
  const place = byId("expense-body"), cost = run.expense, hasMoney = cost.price !== null, hasPower = cost.watts !== null;
  if (!cost.ways.length || !(cost.ranks > 0)) {
    place.append(el("p", { class: "hint" }, "Nothing is known of what the run cost."));
    return;
  }
  const head = ["way", "bytes moved", "", "formula", "data stored", "rank-hours", ...(hasMoney ? ["money"] : []), ...(hasPower ? ["energy"] : [])];
  const most = Math.max(...cost.ways.map((way) => way.bytes_moved ?? 0)), least = Math.min(...cost.ways.map((way) => way.bytes_moved || Infinity));
  const body = el("tbody");
  for (const way of cost.ways) {
    const bar = el("div", { class: "stack thin" }), fill = el("i");
    // By the logarithm: they differ by thousands.
    fill.style.width = way.bytes_moved ? `${4 + 96 * (most > least ? Math.log(way.bytes_moved / least) / Math.log(most / least) : 1)}%` : "0";
    fill.style.background = way.kind === "measured" ? "var(--best)" : "var(--accent)";
    bar.style.width = "110px";
    bar.append(fill);
    const row = el("tr", { class: way.kind, data: { way: way.name } }, el("td", { class: "left" }, way.name), el("td", {}, bytes(way.bytes_moved)), el("td", {}, bar),
      el("td", { class: "left" }, way.kind === "measured" ? el("span", { class: "chip done" }, "measured") : el("code", {}, way.formula.replace("-", "−"))),
      el("td", {}, bytes(way.storage_bytes)), el("td", { title: way.basis }, way.rank_s === null ? "–" : number(way.rank_s / 3600, 3)));
    if (hasMoney) row.append(el("td", {}, way.rank_s === null ? "–" : money(way.rank_s)));
    if (hasPower) row.append(el("td", {}, way.rank_s === null ? "–" : energy(way.rank_s)));
    body.append(row);
  }
  const titles = head.map((words, i) => el("th", { class: i === 0 || i === 3 ? "left" : "", scope: "col" }, words));
  place.append(el("div", { class: "scroll" }, el("table", { id: "ways" }, el("thead", {}, el("tr", {}, ...titles)), body)));
  const notes = [
    "Measured: the first row, from the events of this run. All other rows are formulas with this run's sizes: k epochs, S configs of m bytes, p ranks, D bytes of data, batches of b rows; where configs differ, their sum. Formulas of bytes: Cerebro (Nakandala, Zhang, Kumar, PVLDB 13(11), 2020), as its errata have them.",
    "For hops m is the whole state; a gradient is as large as the weights alone, so for the parameter server and the all-reduce m is that. Model averaging and the parameter server compute something else than sequential training, so they have no time here.",
    `Rank-hours are those of the visits, idle time included${cost.setup_s > 0 ? `; set-up took ${seconds(cost.setup_s)} on each rank more` : ""}. Task parallel: each config's measured seconds on one rank, the longest first on the rank that is free first, without the time to copy the data. All-reduce: each config's measured seconds split evenly over the ranks, and for each step 2 (p−1) messages of m/p bytes${cost.bandwidth ? ` at the measured ${bytes(cost.bandwidth)}/s and ${seconds(cost.latency_s)}` : ", if hops had been timed"}.`,
  ];
  if (!run.ended) notes.push("The run did not end: k counts the epochs that have ended, and seconds are those so far.");
  if (!cost.batch_known) notes.push("The batch size of the configs is not known, so that steps cannot be counted: give it with --batch-size.");
  if (hasMoney || hasPower) notes.push("Money and energy are rank-hours times the price and the power that were given, busy or idle alike; they were not measured.");
  else notes.push("With --price-per-hour and --watts the table has money and energy too.");
  for (const note of notes) place.append(el("p", { class: "hint" }, note));
}
