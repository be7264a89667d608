// The first things to know: the best config, how it ended, what it took.

function showSummary() {
  byId("title").textContent = run.title;
  document.title = `${run.title} · mophpc`;
  const state = byId("state");
  state.textContent = run.ended ? "ended" : "did not end";
  state.classList.add(run.ended ? "done" : "unfinished");
  for (const problem of run.problems) byId("problems").append(el("p", { class: "problem" }, problem));

  const tiles = el("div", { class: "tiles" }), best = rowOf.get(run.best), cost = run.expense;
  if (best) {
    const where = best.best_epoch === null ? "" : ` in epoch ${best.best_epoch}`;
    const lead = tile(`Best ${run.metric}${run.ended ? "" : " so far"} (${run.maximise ? "max" : "min"})`, number(best.best, 5),
      `${best.name}${where}${valuesSince(best)}`, "lead");
    lead.querySelector(".value").dataset.value = JSON.stringify(best.best);
    lead.id = "best";
    tiles.append(lead);
  }
  const counts = new Map();
  for (const row of run.rows) counts.set(row.status, (counts.get(row.status) ?? 0) + 1);
  tiles.append(tile("Configs", String(run.rows.length), [...counts].map(([status, n]) => `${n} ${status}`).join(", ")));
  tiles.append(tile("Ranks", String(run.ranks), `${plural(run.shards, "shard")}, ${plural(run.epochs, "epoch")}`));
  if (cost.makespan_s > 0) {
    const above = cost.lower_bound_s ? `${(cost.makespan_s / cost.lower_bound_s).toFixed(2)} × the lower bound${cost.parts > 1 ? `, in ${cost.parts} parts` : ""}` : "";
    tiles.append(tile("Makespan", seconds(cost.makespan_s), above));
    tiles.append(tile("Rank-hours", number(cost.rank_s / 3600, 3), `${plural(run.ranks, "rank")} for ${seconds(cost.rank_s / run.ranks)}, ${seconds(cost.setup_s)} of it set-up`));
  }
  const totals = partTotals(), whole = totals.reduce((a, b) => a + b, 0);
  if (whole > 0) {
    const share = (name) => totals[run.parts.indexOf(name)] / whole;
    tiles.append(tile("Computing", percent(share("compute") + share("evaluation")), `${percent(share("idle"))} idle`));
    if (run.traffic.hops) tiles.append(tile("Waiting for hops", percent(share("exposed_hop"), 2), `${percent(run.traffic.hidden / run.traffic.hops)} of the hops were hidden whole`));
  }
  if (run.traffic.hops) tiles.append(tile("Hops", run.traffic.hops.toLocaleString("en"), `${bytes(run.traffic.state_bytes)} of states`));
  if (cost.price !== null && cost.rank_s) tiles.append(tile("Money", money(cost.rank_s), `at ${number(cost.price)} per rank and hour`));
  if (cost.watts !== null && cost.rank_s) tiles.append(tile("Energy", energy(cost.rank_s), `at ${number(cost.watts)} W per rank`));
  byId("summary").append(tiles);

  for (const section of document.querySelectorAll("[data-nav]")) {
    byId("nav").append(el("a", { href: `#${section.id}` }, section.dataset.nav));
  }
}

// What a config's name does not say: which hyperparameters it had in its best epoch, and has at last, where it took over states.
function valuesSince(row) {
  const words = (step) => Object.entries(step?.hyperparameters ?? {}).filter(([name, value]) => row.began[name] !== value).map(([name, value]) => `${name} ${number(value)}`).join(", ");
  const last = row.lineage[row.lineage.length - 1], used = row.lineage.filter((step) => row.best_epoch === null || step.epoch <= row.best_epoch).pop();
  const then = words(used), at_last = used === last ? "" : words(last);
  if (!then && !at_last) return "";
  return `${then ? `, with ${then}` : ""}${at_last ? `; since epoch ${last.epoch} with ${at_last}` : ""} (its name says what it began with)`;
}

function partTotals() {
  return run.parts.map((_, i) => run.spent.reduce((sum, rank) => sum + rank.seconds[i], 0));
}

function money(rank_s) {
  const value = (rank_s / 3600) * run.expense.price;
  const shown = value >= 0.1 ? value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 }) : number(value, 2);
  return `${run.expense.currency}${run.expense.currency ? " " : ""}${shown}`;
}

function energy(rank_s) {
  const kwh = (rank_s / 3.6e6) * run.expense.watts;
  return kwh >= 1 ? `${number(kwh, 3)} kWh` : `${number(kwh * 1000, 3)} Wh`;
}

// Light, dark, or what the system says.
function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)"), names = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" };
  let mode = "auto";
  try { mode = localStorage.getItem("mophpc-theme") ?? "auto"; } catch { /* a page from disk may not have a store */ }
  if (!(mode in names)) mode = "auto";
  const apply = () => {
    document.documentElement.dataset.theme = mode === "auto" ? (dark.matches ? "dark" : "light") : mode;
    byId("theme").textContent = names[mode];
    readStyle();
    changed("theme");
  };
  byId("theme").addEventListener("click", () => {
    mode = { auto: dark.matches ? "light" : "dark", light: dark.matches ? "dark" : "auto", dark: dark.matches ? "auto" : "light" }[mode];
    try { localStorage.setItem("mophpc-theme", mode); } catch { /* as above */ }
    apply();
  });
  dark.addEventListener("change", apply);
  apply();
}
