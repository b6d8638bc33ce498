"use strict";
// Draws what devices do in a step on a canvas: ops, transfers and memory.

const LANE = 26, TEXT = 15, STRIP = TEXT + 16, GAP = 8, AXIS = 22, LEFT = 2;
const MOST_TRANSFERS = 1200; // drawn at once, the largest first

function lowerBound(values, wanted) {
  let first = 0, last = values.length;
  while (first < last) {
    const middle = (first + last) >> 1;
    if (values[middle] < wanted) first = middle + 1; else last = middle;
  }
  return first;
}

// The part of the time axis that all timelines of the page show.
class TimeRange {
  constructor(end) {
    this.all = end > 0 ? end : 1;
    this.begin = 0;
    this.end = this.all;
    this.listeners = [];
  }

  set(begin, end) {
    const least = this.all * 1e-6;
    const span = Math.min(Math.max(end - begin, least), this.all);
    this.begin = Math.min(Math.max(begin, 0), this.all - span);
    this.end = this.begin + span;
    for (const listener of this.listeners) listener();
  }

  zoom(factor, around) {
    const at = around === undefined ? (this.begin + this.end) / 2 : around;
    this.set(at - (at - this.begin) * factor, at + (this.end - at) * factor);
  }

  move(fraction) {
    const by = (this.end - this.begin) * fraction;
    this.set(this.begin + by, this.end + by);
  }
}

class Timeline {
  // `plan` and `names` are of the page's data; `view` is what all timelines
  // share: range, selected op, matches, what is shown, and `pick(op)`.
  constructor(canvas, plan, devices, view) {
    Object.assign(this, { canvas, plan, devices, view });
    this.lanes = devices.map(() => []);
    plan.ops.start.forEach((_, i) => this.lanes[plan.ops.device[i]].push(i));
    for (const lane of this.lanes) {
      lane.sort((a, b) => plan.ops.start[a] - plan.ops.start[b] || a - b);
    }
    this.starts = this.lanes.map((x) => x.map((i) => plan.ops.start[i]));
    this.position = new Map(plan.ops.op.map((op, i) => [op, i]));
    this.critical = new Set(), this.criticalTransfers = new Set();
    for (const [kind, index] of plan.critical) {
      (kind === "op" ? this.critical : this.criticalTransfers).add(index);
    }
    this.bySize = plan.transfers.start.map((_, t) => t);
    this.bySize.sort((a, b) => plan.transfers.bytes[b] - plan.transfers.bytes[a]);
    this.queued = false;
    view.range.listeners.push(() => this.redraw());
    this.listen();
  }

  get height() {
    return AXIS + this.devices.length * (LANE + STRIP + GAP);
  }

  top(device) {
    return AXIS + device * (LANE + STRIP + GAP);
  }

  x(time) {
    const { begin, end } = this.view.range;
    return LEFT + (time - begin) / (end - begin) * (this.width - 2 * LEFT);
  }

  time(x) {
    const { begin, end } = this.view.range;
    return begin + (x - LEFT) / (this.width - 2 * LEFT) * (end - begin);
  }

  redraw() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => { this.queued = false; this.draw(); });
  }

  draw() {
    const canvas = this.canvas, ratio = window.devicePixelRatio || 1;
    this.width = canvas.clientWidth;
    canvas.style.height = this.height + "px";
    canvas.width = Math.round(this.width * ratio);
    canvas.height = Math.round(this.height * ratio);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const style = getComputedStyle(document.documentElement);
    this.color = (name) => style.getPropertyValue("--" + name).trim();
    context.font = "11px system-ui, sans-serif";
    this.drawn = 0;
    this.drawAxis(context);
    this.devices.forEach((device, k) => {
      this.drawMemory(context, device, k);
      this.drawOps(context, device, k);
    });
    if (this.view.showTransfers) this.drawTransfers(context);
    canvas.dataset.drawn = this.drawn;
    canvas.dataset.begin = this.view.range.begin;
    canvas.dataset.end = this.view.range.end;
  }

  drawAxis(context) {
    const { begin, end } = this.view.range;
    const rough = (end - begin) / Math.max(2, this.width / 110);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((x) => x * power >= rough) * power;
    context.textBaseline = "top";
    for (let i = Math.ceil(begin / step); i * step <= end; i++) {
      const x = this.x(i * step);
      context.fillStyle = this.color("line");
      context.fillRect(x, 14, 1, this.height - 14);
      context.fillStyle = this.color("soft");
      const text = duration(i * step);
      const width = context.measureText(text).width;
      context.fillText(text, Math.min(x + 3, this.width - width), 1);
    }
  }

  drawOps(context, device, k) {
    const { ops } = this.plan, lane = this.lanes[k], top = this.top(k);
    const { begin, end } = this.view.range;
    const plain = this.color("d" + k % 8), critical = this.color("accent");
    // Before the first to start in sight, one may still be running.
    const first = Math.max(0, lowerBound(this.starts[k], begin) - 1);
    const covered = new Map(); // by colour, the last pixel that is painted
    for (let j = first; j < lane.length; j++) {
      const i = lane[j];
      if (ops.start[i] > end) break;
      if (ops.end[i] < begin) continue;
      const on = this.view.showCritical && this.critical.has(ops.op[i]);
      const found = this.view.matches.has(ops.op[i]);
      const color = found ? this.color("match") : on ? critical : plain;
      const left = this.x(ops.start[i]), width = this.x(ops.end[i]) - left;
      if (width < 1) { // a pixel for all ops of a kind that share it
        const pixel = Math.floor(left);
        if (covered.get(color) === pixel) continue;
        covered.set(color, pixel);
      }
      context.fillStyle = color;
      context.fillRect(left, top, Math.max(width > 3 ? width - 1 : width, 1), LANE);
      this.drawn++;
      if (width > 40) this.label(context, ops.op[i], left, top, width);
    }
    this.drawSelected(context, k, top);
    context.fillStyle = this.color("soft");
    context.textBaseline = "top";
    const memory = size(device.peak_bytes) + " of " + size(device.memory_bytes);
    context.fillText(device.label + ", at most " + memory, LEFT + 2, top + LANE + 3);
  }

  label(context, op, left, top, width) {
    context.save();
    context.beginPath();
    context.rect(Math.max(left, 0), top, width - 2, LANE);
    context.clip();
    context.fillStyle = this.color("card");
    context.textBaseline = "middle";
    const parts = this.view.names[op].split("/");
    context.fillText(parts.slice(-2).join("/"), Math.max(left, 0) + 4, top + LANE / 2);
    context.restore();
  }

  drawSelected(context, k, top) {
    const i = this.position.get(this.view.selected);
    if (i === undefined || this.plan.ops.device[i] !== k) return;
    const left = this.x(this.plan.ops.start[i]);
    const width = Math.max(this.x(this.plan.ops.end[i]) - left, 3);
    context.strokeStyle = this.color("ink");
    context.lineWidth = 2;
    context.strokeRect(left - 1, top - 1, width + 2, LANE + 2);
  }

  drawMemory(context, device, k) {
    const { time, bytes } = this.plan.memory[k];
    const most = Math.max(device.memory_bytes, device.peak_bytes, 1);
    // A device that is nearly empty still shows how its memory moves.
    const scale = Math.max(Math.min(most, 1.25 * device.peak_bytes), 1);
    const bottom = this.top(k) + LANE + STRIP, last = this.view.range.end;
    let j = Math.max(0, lowerBound(time, this.view.range.begin) - 1);
    context.globalAlpha = 0.3;
    context.fillStyle = this.color("d" + k % 8);
    while (j < time.length && time[j] <= last) {
      const left = Math.max(this.x(time[j]), 0);
      let height = bytes[j], next = j + 1;
      while (next < time.length && this.x(time[next]) < left + 1) {
        height = Math.max(height, bytes[next++]);
      }
      const until = next < time.length ? time[next] : this.plan.makespan_us;
      const right = Math.min(this.x(until), this.width);
      const tall = height / scale * (STRIP - TEXT);
      context.fillRect(left, bottom - tall, Math.max(right - left, 1), tall);
      this.drawn++;
      j = next;
    }
    context.globalAlpha = 1;
    if (device.memory_bytes <= scale) {
      const y = bottom - device.memory_bytes / scale * (STRIP - TEXT);
      context.strokeStyle = this.color("limit");
      context.lineWidth = 1;
      context.setLineDash([4, 3]);
      context.beginPath();
      context.moveTo(0, y);
      context.lineTo(this.width, y);
      context.stroke();
      context.setLineDash([]);
    }
  }

  drawTransfers(context) {
    const { transfers } = this.plan, { begin, end } = this.view.range;
    let left = MOST_TRANSFERS;
    for (const t of this.bySize) {
      if (transfers.start[t] > end || transfers.end[t] < begin) continue;
      if (left-- === 0) break;
      const on = this.view.showCritical && this.criticalTransfers.has(t);
      const mine = transfers.op[t] === this.view.selected;
      context.strokeStyle = this.color(on ? "accent" : "ink");
      context.globalAlpha = on || mine ? 1 : 0.35;
      context.lineWidth = on || mine ? 2 : 1;
      const down = transfers.from[t] < transfers.to[t];
      const from = this.top(transfers.from[t]) + (down ? LANE : 0);
      const to = this.top(transfers.to[t]) + (down ? 0 : LANE);
      context.beginPath();
      context.moveTo(this.x(transfers.start[t]), from);
      context.lineTo(this.x(transfers.end[t]), to);
      context.stroke();
      this.drawn++;
    }
    context.globalAlpha = 1;
  }

  // The index of what is drawn at a point, or undefined.
  opAt(x, y) {
    const k = Math.floor((y - AXIS) / (LANE + STRIP + GAP));
    if (k < 0 || k >= this.devices.length || y > this.top(k) + LANE) return;
    const { ops } = this.plan, lane = this.lanes[k], reach = 3;
    const first = lowerBound(this.starts[k], this.time(x - reach)) - 1;
    let best, nearest = reach;
    for (let j = Math.max(first, 0); j < lane.length; j++) {
      const left = this.x(ops.start[lane[j]]), right = this.x(ops.end[lane[j]]);
      if (left > x + reach) break;
      const away = Math.max(left - x, x - right, 0);
      if (away < nearest) { nearest = away; best = lane[j]; }
    }
    return best === undefined ? undefined : ops.op[best];
  }

  listen() {
    const { canvas } = this, { range } = this.view, fingers = new Map();
    let pressed;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const [x] = at(event);
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        range.move(event.deltaX / this.width);
      } else {
        range.zoom(Math.exp(event.deltaY / 400), this.time(x));
      }
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, at(event)[0]);
      pressed = at(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = at(event), before = fingers.get(event.pointerId);
      if (before === undefined) { this.view.hover(this, this.opAt(x, y)); return; }
      const others = [...fingers].filter(([id]) => id !== event.pointerId);
      fingers.set(event.pointerId, x);
      if (others.length) { // a pinch
        const other = others[0][1];
        const factor = Math.abs(before - other) / Math.max(Math.abs(x - other), 1);
        range.zoom(Math.min(Math.max(factor, 0.5), 2), this.time(other));
      } else {
        range.move((before - x) / this.width);
      }
    });
    const lift = (event) => {
      const [x, y] = at(event);
      fingers.delete(event.pointerId);
      if (pressed && Math.hypot(x - pressed[0], y - pressed[1]) < 5) {
        this.view.pick(this, this.opAt(x, y));
      }
      pressed = undefined;
    };
    canvas.addEventListener("pointerup", lift);
    canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("keydown", (event) => {
      const action = {
        ArrowLeft: () => range.move(-0.2), ArrowRight: () => range.move(0.2),
        "+": () => range.zoom(0.5), "=": () => range.zoom(0.5),
        "-": () => range.zoom(2), "0": () => range.set(0, range.all),
      }[event.key];
      if (action) { event.preventDefault(); action(); }
    });
  }
}
