// Elements, numbers as text, colours, what is chosen, and the tip that follows the pointer.

function el(tag, settings = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name === "class") found.className = value;
    else if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(found.dataset, value);
    else if (value !== false && value !== null) found.setAttribute(name, value === true ? "" : value);
  }
  found.append(...children.filter((child) => child !== null && child !== undefined));
  return found;
}

const byId = (id) => document.getElementById(id);

function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value).replace("-", "−");
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) {
    return value.toExponential(Math.max(0, digits - 2)).replace(/\.?0+e/, "e").replace("e+", "e").replace(/-/g, "−");
  }
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) { value /= 1000; unit++; }
  return `${unit === 0 ? Math.round(value) : number(value, 3)} ${units[unit]}`;
}

function seconds(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 1e-3) return `${number(value * 1e6, 3)} µs`;
  if (size < 1) return `${number(value * 1e3, 3)} ms`;
  if (size < 120) return `${number(value, 4)} s`;
  if (size < 7200) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${number(value / 3600, 4)} h`;
}

const hours = (value_s) => (value_s === null || value_s === undefined ? "–" : `${number(value_s / 3600, 3)} h`);
const percent = (share, digits = 1) => (Number.isFinite(share) ? `${(100 * share).toFixed(digits)}%` : "–");
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

const style = {};
function readStyle() {
  const found = getComputedStyle(document.documentElement);
  for (const name of ["bg", "card", "ink", "muted", "line", "soft", "accent", "best", "bad", "warn",
    "good", "plan", "compute", "evaluation", "exposed_hop", "data", "checkpoint", "idle"]) {
    style[name] = found.getPropertyValue(`--${name}`).trim();
  }
  style.dark = document.documentElement.dataset.theme === "dark";
  style.font = getComputedStyle(document.body).fontFamily;
}

// Neighbouring ids get hues that are far apart.
function configColour(id) {
  const hue = (id * 137.508 + 262) % 360, light = [0.58, 0.66, 0.5][id % 3] + (style.dark ? 0.02 : 0);
  return `oklch(${light} 0.115 ${hue.toFixed(0)})`;
}

// From dull to bright; close to viridis, whose ends are too faint on a white or a dark page.
const SCALE = [[68, 58, 140], [49, 104, 162], [33, 150, 150], [66, 186, 112], [170, 206, 48]];
const SCALE_DARK = [[110, 96, 190], [76, 132, 204], [52, 178, 178], [96, 212, 130], [220, 232, 80]];
function scaleColour(share) {
  const stops = style.dark ? SCALE_DARK : SCALE;
  const at = Math.min(1, Math.max(0, share)) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(at));
  return `rgb(${stops[low].map((v, i) => Math.round(v + (stops[low + 1][i] - v) * (at - low))).join(" ")})`;
}
const KINDS = ["#3b6fd8", "#2b9a66", "#ae3ec9", "#c99700", "#1098ad", "#e64980", "#7a8594", "#5c4ad6"];
const KINDS_DARK = ["#6f9bff", "#5fd39a", "#da77f2", "#ffd43b", "#3bc9db", "#faa2c1", "#a9b4c0", "#9d8df5"];
const kindColour = (index) => (style.dark ? KINDS_DARK : KINDS)[index % KINDS.length];

// What is chosen: one config, and those that the table's filter and the axes' brushes let through.
const chosen = { config: null, over: null, shown: new Set(run.rows.map((row) => row.id)), brushes: new Map(), text: "" };
const listeners = [];
const onChange = (listener) => listeners.push(listener);
function changed(what) { for (const listener of listeners) listener(what); }
function pick(id) {
  chosen.config = chosen.config === id ? null : id;
  changed("config");
}
function hover(id) {
  if (chosen.over === id) return;
  chosen.over = id;
  changed("over");
}

function showTip(event, text) {
  const tip = byId("tip");
  tip.textContent = text;
  tip.hidden = false;
  const width = tip.offsetWidth, height = tip.offsetHeight;
  const left = Math.min(event.clientX + 14, innerWidth - width - 8);
  const below = event.clientY + 18;
  const top = below + height > innerHeight - 8 ? event.clientY - height - 12 : below;
  tip.style.transform = `translate(${Math.max(8, left)}px, ${Math.max(8, top)}px)`;
}
function hideTip() { byId("tip").hidden = true; }

function choice(label, options, value, act) {
  const select = el("select", { onchange: () => act(select.value), "aria-label": label });
  for (const [key, text] of options) select.append(el("option", { value: key, selected: key === value }, text));
  return el("label", {}, label, select);
}

function tile(label, value, more = "", kind = "") {
  return el("div", { class: `tile ${kind}` }, el("div", { class: "label" }, label),
    el("div", { class: "value" }, value), el("div", { class: "more" }, more));
}
