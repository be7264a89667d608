// A canvas that is as sharp as the screen, as wide as its place, and drawn again when asked.

class Canvas {
  constructor(place, height, paint, label) {
    this.node = el("canvas", { role: "img", "aria-label": label });
    this.height = height;
    this.paint = paint;
    this.wanted = false;
    this.fixed = 0;
    place.append(this.node);
    new ResizeObserver(() => this.draw()).observe(place);
    this.place = place;
  }

  get width() { return this.fixed || this.place.clientWidth; }

  draw() {
    if (this.wanted) return;
    this.wanted = true;
    requestAnimationFrame(() => {
      this.wanted = false;
      const ratio = Math.min(3, devicePixelRatio || 1), width = Math.max(1, this.width);
      const wide = Math.round(width * ratio), high = Math.round(this.height * ratio);
      if (this.node.width !== wide || this.node.height !== high) {
        this.node.width = wide;
        this.node.height = high;
        this.node.style.height = `${this.height}px`;
        this.node.style.width = `${width}px`;
      }
      const pen = this.node.getContext("2d");
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, width, this.height);
      pen.font = `12px ${style.font}`;
      pen.lineJoin = "round";
      this.paint(pen, width, this.height);
    });
  }

  at(event) {
    const box = this.node.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }
}

// Round numbers from low to high, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0) || !Number.isFinite(rough)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((s) => s >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high)), found = [];
  const factors = last - first > 3 ? [1] : [1, 2, 5];
  for (let power = first; power <= last; power++) {
    for (const factor of factors) found.push(Number((factor * 10 ** power).toPrecision(3)));
  }
  const inside = found.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  return inside.length > 1 ? inside : ticks(low, high, 4);
}

// Places a value between two pixels, evenly or by its logarithm.
function scale(low, high, from, to, log = false) {
  const f = log ? Math.log : (v) => v, a = f(low), b = f(high);
  const whole = b - a || 1;
  const place = (value) => from + ((f(value) - a) / whole) * (to - from);
  place.back = (pixel) => {
    const value = a + ((pixel - from) / (to - from)) * whole;
    return log ? Math.exp(value) : value;
  };
  return place;
}

function text(pen, words, x, y, colour = style.muted, align = "left", base = "middle") {
  pen.fillStyle = colour;
  pen.textAlign = align;
  pen.textBaseline = base;
  pen.fillText(words, x, y);
}

function line(pen, x0, y0, x1, y1, colour, width = 1, dash = []) {
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.setLineDash(dash);
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
  pen.setLineDash([]);
}

// Words in front of a line: with the background's colour around them.
function label(pen, words, x, y, colour, align = "left") {
  pen.lineWidth = 4;
  pen.strokeStyle = style.card;
  pen.textAlign = align;
  pen.textBaseline = "middle";
  pen.strokeText(words, x, y);
  text(pen, words, x, y, colour, align);
}
