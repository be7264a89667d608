// The run's data: facts as JSON, and long columns that page_data.py has packed.

const run = JSON.parse(document.getElementById("data").textContent);

async function unpack(packed) {
  const text = atob(packed.base64);
  const squeezed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) squeezed[i] = text.charCodeAt(i);
  const stream = new Blob([squeezed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const columns = {};
  let at = 0;
  for (const { name, kind, length } of packed.columns) {
    const width = Number(kind[1]);
    const bits = new Uint32Array(length);
    for (let plane = 0; plane < width; plane++) {
      for (let i = 0; i < length; i++) bits[i] |= bytes[at + i] << (8 * plane);
      at += length;
    }
    if (kind[0] === "f") {
      columns[name] = new Float32Array(bits.buffer);
    } else { // small integers of both signs were folded: 0, -1, 1, -2, ...
      columns[name] = Int32Array.from(bits, (v) => (v >>> 1) ^ -(v & 1));
    }
  }
  return columns;
}

function sums(values) {
  let total = 0;
  return Float64Array.from(values, (value) => (total += value));
}

// Starts and ends in seconds from gaps after the last end; NaN where the length is -1.
function spans(gaps, lengths) {
  const start = new Float64Array(gaps.length).fill(NaN), end = start.slice();
  let last = 0;
  for (let i = 0; i < gaps.length; i++) {
    if (lengths[i] < 0) continue;
    const begin = last + gaps[i];
    last = begin + lengths[i];
    start[i] = begin * run.quantum_s;
    end[i] = last * run.quantum_s;
  }
  return { start, end };
}

function makeVisits(c) {
  const rank = sums(c.rank), size = rank.length;
  const planned = spans(c.planned_gap, c.planned_length), real = spans(c.real_gap, c.real_length);
  const hopEnd = new Float64Array(size).fill(NaN), hopStart = hopEnd.slice();
  for (let i = 0; i < size; i++) {
    if (c.hop_length[i] < 0) continue;
    hopEnd[i] = real.start[i] - c.hop_ago[i] * run.quantum_s;
    hopStart[i] = hopEnd[i] - c.hop_length[i] * run.quantum_s;
  }
  const before = new Int32Array(size).fill(-1), at = new Map();
  let steps = 1;
  for (const step of c.step) if (step >= steps) steps = step + 1;
  for (let i = 0; i < size; i++) at.set(c.config[i] * steps + c.step[i], i);
  for (let i = 0; i < size; i++) before[i] = at.get(c.config[i] * steps + c.step[i] - 1) ?? -1;
  for (let i = 0; i < size; i++) if (c.step[i] === 0) before[i] = -1;
  return {
    size, rank, plannedRank: rank.map((r, i) => r + c.moved[i]), planned, real, before,
    config: c.config, epoch: c.epoch, shard: c.shard, step: c.step,
    hopSource: c.hop_source, hopStart, hopEnd,
    exposed: Float64Array.from(c.hop_exposed, (q) => q * run.quantum_s),
  };
}

function makeOthers(c) {
  const starts = sums(c.other_gap), q = run.quantum_s;
  return {
    kind: c.other_kind, rank: sums(c.other_rank), config: c.other_config,
    start: starts.map((s) => s * q), end: starts.map((s, i) => (s + c.other_length[i]) * q),
  };
}

// Per config its epochs in order, with the values of every metric.
function makeCurves(c) {
  const curves = new Map(run.rows.map((row) => [row.id, []]));
  for (let i = 0; i < c.curve_config.length; i++) {
    const values = run.metrics.map((_, m) => c[`curve_${m}`][i]);
    curves.get(c.curve_config[i])?.push({ epoch: c.curve_epoch[i], time: c.curve_time[i], values });
  }
  return curves;
}

const rowOf = new Map(run.rows.map((row) => [row.id, row]));
const shortName = (id) => rowOf.get(id)?.name.split("-")[0] ?? `c${String(id).padStart(3, "0")}`;

// The objective of a row; one that diverged is worse than all others.
function score(row) {
  if (row.best === null || row.status === "diverged") return -Infinity;
  return run.maximise ? row.best : -row.best;
}
