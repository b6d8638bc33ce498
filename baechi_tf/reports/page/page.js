"use strict";
// Fills the page with what the report's JSON says. Names and paths come from a
// model that nobody here has seen: they are text, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function duration(us) {
  for (const [unit, scale] of [["s", 1e6], ["ms", 1e3]]) {
    if (Math.abs(us) >= scale) return trimmed(us / scale) + " " + unit;
  }
  return trimmed(us) + " µs";
}

function trimmed(value) {
  return String(Number(value.toPrecision(5)));
}

function size(bytes) {
  for (const [unit, power] of [["TiB", 40], ["GiB", 30], ["MiB", 20], ["KiB", 10]]) {
    if (bytes >= 2 ** power) return (bytes / 2 ** power).toFixed(2) + " " + unit;
  }
  return bytes + " B";
}

const percent = (fraction) => (100 * fraction).toFixed(1) + " %";

function element(tag, text, properties = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  return Object.assign(made, properties);
}

// A table in `parent`; a cell is text, a number to the right, or an element.
function table(parent, caption, header, rows) {
  const made = element("table"), head = element("tr");
  made.setAttribute("aria-label", caption);
  for (const [title, kind] of header) {
    head.append(element("th", title, { scope: "col", className: kind || "" }));
  }
  made.append(element("thead"), element("tbody"));
  made.tHead.append(head);
  for (const { cells, className } of rows) {
    const row = element("tr", undefined, { className: className || "" });
    cells.forEach((cell, i) => {
      const place = element("td", undefined, { className: header[i][1] || "" });
      place.append(cell instanceof Node ? cell : String(cell));
      row.append(place);
    });
    made.tBodies[0].append(row);
  }
  parent.replaceChildren(made);
}

const summary = data.summary;
const view = {
  range: new TimeRange(Math.max(...data.plans.map((x) => x.makespan_us))),
  names: data.names,
  selected: undefined,
  matches: new Set(),
  showTransfers: true,
  showCritical: true,
  hover(timeline, op) {
    timeline.canvas.title = op === undefined ? "" : data.names[op];
    timeline.canvas.style.cursor = op === undefined ? "grab" : "pointer";
  },
  pick(timeline, op) { select(op, timeline); },
};
let timelines = [];
const redraw = () => timelines.forEach((x) => x.redraw());

function opButton(op) {
  const button = element("button", data.names[op], { type: "button" });
  button.addEventListener("click", () => { show(op); });
  return button;
}

function deviceLabel(k) {
  const { label, name } = data.devices[k];
  return element("span", label, { title: name });
}

// Selects an op and brings it into sight.
function show(op) {
  const timeline = timelines.find((x) => x.position.has(op));
  if (timeline) {
    const { ops } = timeline.plan, i = timeline.position.get(op);
    const span = view.range.end - view.range.begin;
    const wanted = Math.max((ops.end[i] - ops.start[i]) * 12, view.range.all * 1e-4);
    const middle = (ops.start[i] + ops.end[i]) / 2, half = Math.min(span, wanted) / 2;
    view.range.set(middle - half, middle + half);
    timeline.canvas.scrollIntoView({ block: "nearest" });
  }
  select(op, timeline);
}

function select(op, timeline) {
  view.selected = op;
  redraw();
  const details = byId("details");
  if (op === undefined || !timeline) {
    details.replaceChildren(element("p", "Choose an op to see when it runs and what it sends."));
    return;
  }
  const { plan } = timeline, i = timeline.position.get(op);
  const lines = [element("p", undefined)];
  lines[0].append(element("strong", data.names[op]));
  const { start, end, device } = plan.ops;
  lines.push(element("p", "on " + data.devices[device[i]].label + " from "
    + duration(start[i]) + " to " + duration(end[i]) + " (" + duration(end[i] - start[i])
    + ")" + (timeline.critical.has(op) ? ", on the critical path" : "")));
  const sent = plan.transfers.op.flatMap((x, t) => x === op ? [t] : []);
  for (const t of sent.slice(0, 4)) {
    const { to, bytes, start: left, end: there } = plan.transfers;
    lines.push(element("p", "sends " + size(bytes[t]) + " to " + data.devices[to[t]].label
      + ", " + duration(left[t]) + " to " + duration(there[t])));
  }
  const known = plan.matter.find((x) => x.op === op);
  for (const reason of known ? known.reasons : []) lines.push(element("p", reason));
  details.replaceChildren(...lines);
}

function fillHead() {
  document.title = summary.model + ": placement report";
  byId("title").textContent = summary.model;
  byId("verdict").textContent = data.verdict;
  const one = summary.one_device;
  const figures = [
    ["Predicted step", duration(summary.makespan_us)],
    ["On one device", duration(one.makespan_us) + (one.fits ? "" : " (too big)")],
    ["Speed-up", summary.speedup.toFixed(2) + " ×"],
    ["Above the lower bound", percent(summary.gap)],
    ["Moved between devices", size(summary.bytes_moved)],
    ["Ops", summary.num_ops.toLocaleString("en")],
  ];
  byId("figures").replaceChildren(...figures.map(([title, value]) => {
    const box = element("div");
    box.append(element("dt", title), element("dd", value));
    return box;
  }));
}

function fillTimelines() {
  timelines = data.plans.map((plan) => {
    const figure = element("figure"), canvas = element("canvas", undefined, { tabIndex: 0 });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "Timeline of " + plan.title
      + ": what each device runs when; the tables below say the same in words");
    figure.append(element("figcaption", plan.title + ", " + duration(plan.makespan_us)), canvas);
    byId("timelines").append(figure);
    const devices = data.devices.map((x, k) => ({ ...x, peak_bytes: plan.peaks[k].bytes }));
    return new Timeline(canvas, plan, devices, view);
  });
  select(undefined);
}

function fillMatter(plan) {
  table(byId("matter"), "Ops that matter most",
    [["op", "name"], ["device"], ["time", "number"], ["critical"], ["why it is there"]],
    plan.matter.map((x) => {
      const why = element("ul");
      why.append(...x.reasons.map((reason) => element("li", reason)));
      return { cells: [opButton(x.op), deviceLabel(x.device), duration(x.time_us), x.is_critical ? "yes" : "no", why] };
    }));
}

function fillCritical(plan) {
  byId("critical-words").textContent = plan.critical_words;
  const { ops, transfers } = plan;
  const position = new Map(ops.op.map((op, i) => [op, i]));
  const rows = plan.critical.map(([kind, index, reason]) => {
    const isOp = kind === "op", i = isOp ? position.get(index) : index;
    const from = isOp ? ops : transfers;
    const where = isOp ? data.devices[ops.device[i]].label
      : data.devices[transfers.from[i]].label + " → " + data.devices[transfers.to[i]].label;
    return { time: from.end[i] - from.start[i], cells: [
      opButton(isOp ? index : transfers.op[i]), isOp ? "runs" : "is sent", where,
      duration(from.start[i]), duration(from.end[i] - from.start[i]), reason,
    ] };
  });
  const most = [...rows].sort((a, b) => b.time - a.time).slice(0, 25);
  table(byId("critical"), "Critical path",
    [["op", "name"], ["what"], ["where"], ["from", "number"], ["for", "number"], ["waited for"]],
    rows.filter((x) => most.includes(x)));
  if (rows.length > most.length) {
    byId("critical").append(element("p", "and " + (rows.length - most.length) + " that take less"));
  }
}

function fillMemory(plan) {
  table(byId("memory"), "Memory at the peak",
    [["device"], ["peak", "number"], ["limit", "number"], ["of which"], ["largest", "name"]],
    plan.peaks.map((peak, k) => {
      const limit = data.devices[k].memory_bytes, largest = element("ul");
      largest.append(...peak.largest.map((x) => {
        const item = element("li", size(x.bytes) + " " + x.kind + ", ");
        item.append(opButton(x.op));
        return item;
      }));
      const used = element("span", size(peak.bytes), { className: peak.bytes > limit ? "over" : "" });
      const kinds = Object.entries(peak.kinds).filter(([, bytes]) => bytes > 0);
      return { cells: [deviceLabel(k), used, size(limit),
        kinds.map(([kind, bytes]) => size(bytes) + " " + kind).join(", "), largest] };
    }));
}

function fillDevices() {
  table(byId("devices"), "Devices",
    [["device"], ["type"], ["ops", "number"], ["busy", "number"], ["of step", "number"],
      ["transfers", "number"], ["peak memory", "number"], ["limit", "number"]],
    summary.devices.map((x, k) => ({ cells: [
      deviceLabel(k), x.type, x.num_ops.toLocaleString("en"), duration(x.busy_time_us),
      percent(summary.makespan_us ? x.busy_time_us / summary.makespan_us : 0),
      duration(x.transfer_work_us), size(x.peak_memory_bytes), size(x.memory_bytes),
    ] })));
}

function fillCandidates() {
  table(byId("candidates"), "Candidates",
    [["placer"], ["co-placed"], ["step", "number"], ["speed-up", "number"], ["gap", "number"],
      ["moved", "number"], ["highest peak", "number"], ["why none"]],
    summary.candidates.map((x) => ({
      className: x.placer === summary.placer && x.coplacement === summary.coplacement ? "chosen" : "",
      cells: x.error !== undefined ? [x.placer, x.coplacement, "", "", "", "", "", x.error] : [
        x.placer, x.coplacement, duration(x.makespan_us), x.speedup.toFixed(2) + " ×",
        percent(x.gap), size(x.bytes_moved), size(Math.max(...x.peak_memory_bytes)), ""],
    })));
}

function fillVerification() {
  const attempts = summary.verification ? summary.verification.attempts : [];
  table(byId("verification"), "Predicted and measured",
    [["plan"], ["predicted", "number"], ["measured", "number"], ["one device", "number"]],
    attempts.map((x, i) => ({
      className: i === summary.verification.chosen ? "chosen" : "",
      cells: [x.placer, duration(x.predicted_us), duration(x.measured_us),
        x.one_device_us === null ? "too big" : duration(x.one_device_us)],
    })));
  return attempts.length > 0;
}

function fillNotes() {
  const lines = [summary.lower_bound + ": " + summary.lower_bound_witness];
  for (const [rewrite, count] of Object.entries(summary.num_rewritten || {})) {
    if (count) lines.push("rewritten: " + rewrite + " (" + count + ")");
  }
  for (const x of summary.costs) {
    lines.push("op costs on " + x.device_type + ": " + x.num_measured + " measured, "
      + x.num_estimated + " estimated");
  }
  lines.push(...summary.notes, ...data.notes);
  byId("notes").replaceChildren(...lines.map((x) => element("li", x)));
}

function search(step) {
  const wanted = byId("search").value.toLowerCase();
  const found = wanted === "" ? [] : data.names.flatMap(
    (name, op) => name.toLowerCase().includes(wanted) ? [op] : []);
  view.matches = new Set(found);
  view.match = step && found.length
    ? ((view.match === undefined ? (step > 0 ? -1 : 0) : view.match) + step + found.length) % found.length
    : undefined;
  byId("matches").textContent = wanted === "" ? "" : view.match === undefined
    ? found.length + " found" : (view.match + 1) + " of " + found.length;
  if (view.match !== undefined) show(found[view.match]); else redraw();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  byId("theme").setAttribute("aria-pressed", String(theme === "dark"));
  redraw();
}

function listen() {
  const { range } = view;
  byId("zoom-in").addEventListener("click", () => range.zoom(0.5));
  byId("zoom-out").addEventListener("click", () => range.zoom(2));
  byId("zoom-all").addEventListener("click", () => range.set(0, range.all));
  byId("show-transfers").addEventListener("change", (event) => {
    view.showTransfers = event.target.checked; redraw();
  });
  byId("show-critical").addEventListener("change", (event) => {
    view.showCritical = event.target.checked; redraw();
  });
  byId("search").addEventListener("input", () => search(0));
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter") search(event.shiftKey ? -1 : 1);
  });
  byId("next").addEventListener("click", () => search(1));
  byId("previous").addEventListener("click", () => search(-1));
  byId("theme").addEventListener("click", () => {
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  });
  window.addEventListener("resize", redraw);
}

setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
fillHead();
fillTimelines();
fillMatter(data.plans[0]);
fillCritical(data.plans[0]);
fillMemory(data.plans[0]);
fillDevices();
fillCandidates();
byId("s-candidates").hidden = summary.candidates.length === 0;
byId("s-verification").hidden = !fillVerification();
fillNotes();
listen();
