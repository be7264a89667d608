// Facts first, so that they are there even if a browser cannot unpack the rest.

async function main() {
  startTheme();
  showSummary();
  showTable();
  showParallel();
  showRanks();
  showTraffic();
  showExpense();
  showSettings();
  try {
    const columns = await unpack(run.packed);
    showCurves(makeCurves(columns));
    showSchedule(makeVisits(columns), makeOthers(columns));
  } catch (error) {
    byId("problems").append(el("p", { class: "problem" }, `This browser cannot show curves and schedule: ${error.message}`));
    console.error(error);
  }
  document.documentElement.dataset.ready = "yes";
}

main();
