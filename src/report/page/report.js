"use strict";
(() => {
  const data = JSON.parse(document.getElementById("numbers").textContent);
  const runs = data.runs, several = runs.length > 1;
  const state = { x: "step", smooth: 0.03, log: false, range: null, hidden: new Set() };
  const kHeight = 230, kLeft = 58, kRight = 14, kTop = 8, kBottom = 26, kGiB = 2 ** 30;

  // What each chart shows of a run: names of y; of several runs the first alone.
  const partitions = [...new Set(runs.flatMap((run) => Object.keys(run.y)))].filter((name) => name.startsWith("density/"));
  const charts = [
    { title: "Loss", names: ["loss"], marks: ["val_loss"], raw: true, robust: true, wide: true },
    { title: "Held-out loss by noise level", names: [], marks: markNames("val_loss at ") },
    { title: "Learning rate", names: ["lr"], plain: true },
    { title: "Gradient norm", names: ["grad_norm", ...yNames("grad_norm_")], raw: true, robust: true },
    { title: "Tokens per second", names: ["tokens_per_s"], raw: true, robust: true },
    { title: "Step time and wait for data (s)", names: ["step_s", "data_wait_s"], raw: true, robust: true },
    { title: "MFU (%)", names: ["mfu"], scale: 100, raw: true, robust: true },
    { title: "Memory (GiB)", names: ["memory_bytes"], scale: 1 / kGiB, plain: true },
    { title: "Density of attention", names: ["density", ...partitions], raw: true },
  ].filter((chart) => lines(chart).length > 0);

  function yNames(prefix) {
    return [...new Set(runs.flatMap((run) => Object.keys(run.y)))].filter((name) => name.startsWith(prefix));
  }
  function markNames(prefix) {
    const all = [...new Set(runs.flatMap((run) => Object.keys(run.marks)))].filter((name) => name.startsWith(prefix));
    return all.sort((a, b) => parseFloat(a.slice(prefix.length)) - parseFloat(b.slice(prefix.length)));
  }
  function lines(chart) {
    const out = [];
    runs.forEach((run, r) => {
      const names = several ? chart.names.slice(0, 1) : chart.names;
      names.forEach((name, i) => {
        if (run.y[name]) out.push({ run, name, x: run.x, y: run.y[name], color: several ? r : i, mark: false });
      });
      chart.marks?.forEach((name, i) => {
        if (!run.marks[name] || (several && names.length === 0)) return;
        const color = several ? r : names.length + i;
        out.push({ run, name, x: run.marks[name].x, y: run.marks[name].y, color, mark: true });
      });
    });
    for (const line of out) line.label = several ? `${line.run.name} ${line.name}` : line.name;
    return out;
  }

  const svgElement = (name, attributes, parent) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    parent?.append(element);
    return element;
  };
  const element = (name, className, parent, text) => {
    const out = document.createElement(name);
    if (className) out.className = className;
    if (text !== undefined) out.textContent = text;
    parent?.append(out);
    return out;
  };
  const color = (index) => `var(--line${index % 8})`;
  const cssValue = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function numberText(value) {
    if (value === null || value === undefined || !isFinite(value)) return "-";
    const size = Math.abs(value);
    if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(2).replace(/\.?0+e/, "e");
    return String(parseFloat(value.toPrecision(size >= 1000 ? 6 : 4)));
  }

  function movingMean(values, half) {
    if (half < 1) return values;
    const sums = [0], counts = [0];
    values.forEach((value, i) => {
      sums.push(sums[i] + (value ?? 0));
      counts.push(counts[i] + (value === null ? 0 : 1));
    });
    return values.map((value, i) => {
      const from = Math.max(0, i - half), to = Math.min(values.length, i + half + 1), count = counts[to] - counts[from];
      return value === null || count === 0 ? null : (sums[to] - sums[from]) / count;
    });
  }

  function fullRange() {
    let low = Infinity, high = -Infinity;
    for (const run of runs) {
      const xs = run.x[state.x];
      if (xs.length === 0) continue;
      low = Math.min(low, xs[0]);
      high = Math.max(high, xs[xs.length - 1]);
    }
    if (!(low <= high)) return [0, 1];
    return low === high ? [low - 1, high + 1] : [low, high];
  }

  function yRange(drawn, chart, range) {
    const robust = [], all = [];
    for (const line of drawn) {
      const xs = line.x[state.x];
      for (let i = 0; i < xs.length; i++) {
        if (xs[i] < range[0] || xs[i] > range[1]) continue;
        for (const [values, into] of [[line.shown, all], [line.values, chart.robust ? robust : all]])
          if (values[i] !== null && isFinite(values[i]) && (!state.log || values[i] > 0)) into.push(values[i]);
      }
    }
    robust.sort((a, b) => a - b);
    if (robust.length) all.push(robust[Math.floor(0.01 * (robust.length - 1))], robust[Math.ceil(0.98 * (robust.length - 1))]);
    if (all.length === 0) return null;
    let low = all.reduce((a, b) => Math.min(a, b)), high = all.reduce((a, b) => Math.max(a, b));
    if (state.log) return [low / 1.06, high * 1.06];
    const margin = Math.max(0.05 * (high - low), Math.abs(high) * 1e-3, 1e-12);
    const floor = low >= 0 && low - margin < 0.25 * (high - low);  // near zero the axis begins there
    return [floor ? 0 : low - margin, high + margin];
  }

  function ticks(low, high, count) {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((unit) => unit * power).find((unit) => unit >= rough);
    const out = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) out.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
    return out;
  }
  function logTicks(low, high) {
    const out = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const unit of high / low > 1000 ? [1] : [1, 2, 5]) {
        const tick = unit * 10 ** power;
        if (tick >= low && tick <= high) out.push(tick);
      }
    return out.length > 1 ? out : ticks(low, high, 4);
  }

  function draw(chart) {
    const { svg } = chart;
    svg.replaceChildren();
    const width = Math.max(220, chart.figure.clientWidth - 16);
    svg.setAttribute("viewBox", `0 0 ${width} ${kHeight}`);
    svg.setAttribute("height", kHeight);
    const range = state.range ?? fullRange();
    const drawn = chart.lines.filter((line) => !state.hidden.has(chart.title + line.label));
    for (const line of drawn) {
      const scale = chart.scale ?? 1;
      line.values = line.y.map((value) => (value === null ? null : value * scale));
      const half = line.mark || chart.plain ? 0 : Math.floor(state.smooth * line.values.length / 3);
      line.shown = movingMean(movingMean(line.values, half), half >> 1);  // twice: a peak leaves no box behind
    }
    const ys = yRange(drawn, chart, range);
    if (!ys) {
      svgElement("text", { x: width / 2, y: kHeight / 2, "text-anchor": "middle" }, svg).textContent = "no numbers here";
      chart.place = null;
      return;
    }
    const inner = [kLeft, width - kRight, kTop, kHeight - kBottom];
    const toX = (x) => inner[0] + (x - range[0]) / (range[1] - range[0]) * (inner[1] - inner[0]);
    const level = (y) => (state.log ? Math.log(y) : y);
    const toY = (y) => inner[3] - (level(y) - level(ys[0])) / (level(ys[1]) - level(ys[0])) * (inner[3] - inner[2]);
    for (const tick of state.log ? logTicks(...ys) : ticks(...ys, 5)) {
      svgElement("line", { class: "grid", x1: inner[0], x2: inner[1], y1: toY(tick), y2: toY(tick) }, svg);
      svgElement("text", { x: inner[0] - 5, y: toY(tick) + 4, "text-anchor": "end" }, svg).textContent = numberText(tick);
    }
    for (const tick of ticks(...range, Math.max(2, Math.floor(width / 110)))) {
      svgElement("line", { class: "grid", x1: toX(tick), x2: toX(tick), y1: inner[3], y2: inner[3] + 4 }, svg);
      svgElement("text", { x: toX(tick), y: kHeight - 8, "text-anchor": "middle" }, svg).textContent = numberText(tick);
    }
    const clip = `clip${charts.indexOf(chart)}`;
    const shape = svgElement("clipPath", { id: clip }, svg);
    svgElement("rect", { x: inner[0], y: inner[2], width: inner[1] - inner[0], height: inner[3] - inner[2] }, shape);
    const layer = svgElement("g", { "clip-path": `url(#${clip})` }, svg);
    for (const line of drawn) {
      const xs = line.x[state.x];
      const path = (values) => {
        let text = "", open = false;
        for (let i = 0; i < xs.length; i++) {
          if (values[i] === null || (state.log && values[i] <= 0)) { open = false; continue; }
          text += `${open ? "L" : "M"}${toX(xs[i]).toFixed(1)} ${toY(values[i]).toFixed(1)}`;
          open = true;
        }
        return text;
      };
      const stroke = { fill: "none", stroke: color(line.color), "stroke-linejoin": "round" };
      if (chart.raw && !line.mark && line.shown !== line.values)
        svgElement("path", { ...stroke, d: path(line.values), "stroke-width": 1, opacity: 0.28 }, layer);
      const dashed = line.mark && several && chart.names.length > 0 ? { "stroke-dasharray": "5 3" } : {};
      svgElement("path", { ...stroke, ...dashed, d: path(line.shown), "stroke-width": 2 }, layer);
      if (line.mark || xs.length < 30)
        for (let i = 0; i < xs.length; i++)
          if (line.shown[i] !== null && (!state.log || line.shown[i] > 0))
            svgElement("circle", { cx: toX(xs[i]), cy: toY(line.shown[i]), r: 3, fill: color(line.color) }, layer);
    }
    chart.place = { toX, toY, inner, range, drawn, width };
  }

  const drawAll = () => {
    charts.forEach(draw);
    heatmaps.forEach(drawHeatmap);
    const zoomed = document.getElementById("zoomed");
    if (zoomed) zoomed.hidden = state.range === null;
  };
  const zoom = (range) => {
    state.range = range;
    drawAll();
  };

  function pointerX(chart, event) {
    const box = chart.svg.getBoundingClientRect();
    return (event.clientX - box.left) / box.width * chart.place.width;
  }
  function nearest(xs, x) {
    let low = 0, high = xs.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - xs[low - 1] < xs[low] - x ? low - 1 : low;
  }
  function showTip(chart, at) {
    const { toX, inner, range, drawn } = chart.place;
    const x = range[0] + (at - inner[0]) / (inner[1] - inner[0]) * (range[1] - range[0]);
    const texts = [`${state.x} ${numberText(Math.min(Math.max(x, range[0]), range[1]))}`];
    for (const line of drawn) {
      const xs = line.x[state.x];
      if (xs.length === 0) continue;
      const i = nearest(xs, x);
      if (line.shown[i] !== null) texts.push(`${line.label}: ${numberText(line.shown[i])}`);
    }
    chart.tip.textContent = texts.join("\n");
    chart.tip.style.display = "block";
    const left = Math.min(toX(x) + 24, chart.figure.clientWidth - chart.tip.offsetWidth - 8);
    chart.tip.style.left = `${Math.max(4, left)}px`;
    chart.tip.style.top = `${chart.svg.getBoundingClientRect().top - chart.figure.getBoundingClientRect().top + 8}px`;
    chart.cross?.remove();
    const place = Math.min(Math.max(at, inner[0]), inner[1]);
    chart.cross = svgElement("line", { class: "cross", x1: place, x2: place, y1: inner[2], y2: inner[3] }, chart.svg);
  }
  function hideTip(chart) {
    chart.tip.style.display = "none";
    chart.cross?.remove();
  }
  function listen(chart) {
    let from = null, box = null;
    chart.svg.addEventListener("pointerdown", (event) => {
      if (!chart.place) return;
      from = pointerX(chart, event);
      chart.svg.setPointerCapture(event.pointerId);
      const [, , top, bottom] = chart.place.inner;
      box = svgElement("rect", { class: "selection", x: from, y: top, width: 0, height: bottom - top }, chart.svg);
    });
    chart.svg.addEventListener("pointermove", (event) => {
      if (!chart.place) return;
      const at = pointerX(chart, event);
      showTip(chart, at);
      if (from === null) return;
      box.setAttribute("x", Math.min(from, at));
      box.setAttribute("width", Math.abs(at - from));
    });
    const end = (event, keep) => {
      if (from === null) return;
      const at = pointerX(chart, event), { inner, range } = chart.place;
      box.remove();
      const ends = [from, at].map((x) => range[0] + (x - inner[0]) / (inner[1] - inner[0]) * (range[1] - range[0]));
      const wide = Math.abs(at - from) > 8;
      from = null;
      if (keep && wide) zoom([Math.max(range[0], Math.min(...ends)), Math.min(range[1], Math.max(...ends))]);
    };
    chart.svg.addEventListener("pointerup", (event) => end(event, true));
    chart.svg.addEventListener("pointercancel", (event) => end(event, false));
    chart.svg.addEventListener("pointerleave", () => hideTip(chart));
    chart.svg.addEventListener("dblclick", () => zoom(null));
  }

  function build(host) {
    for (const chart of charts) {
      chart.lines = lines(chart);
      chart.figure = element("figure", chart.wide ? "chart wide" : "chart", host);
      element("figcaption", "", chart.figure, chart.title);
      const legend = element("div", "legend", chart.figure);
      for (const line of chart.lines) {
        if (chart.lines.length < 2) break;
        const key = chart.title + line.label, button = element("button", "", legend);
        element("i", "", button).style.background = color(line.color);
        button.append(line.label);
        button.addEventListener("click", () => {
          if (!state.hidden.delete(key)) state.hidden.add(key);
          button.classList.toggle("off", state.hidden.has(key));
          draw(chart);
        });
      }
      chart.svg = svgElement("svg", { role: "img", "aria-label": chart.title }, chart.figure);
      chart.tip = element("div", "tip", chart.figure);
      listen(chart);
    }
  }

  const heatmaps = runs.filter((run) => run.layers.rows.length > 0).map((run) => ({ run }));
  function buildHeatmaps(host) {
    for (const map of heatmaps) {
      map.figure = element("figure", "chart wide", host);
      element("figcaption", "", map.figure, `Density per layer${several ? ` of ${map.run.name}` : ""}`);
      map.note = element("div", "legend faint", map.figure);
      map.canvas = element("canvas", "", map.figure);
      map.tip = element("div", "tip", map.figure);
      map.canvas.addEventListener("pointermove", (event) => {
        const { rows, step } = map.run.layers, box = map.canvas.getBoundingClientRect();
        const column = Math.min(step.length - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * step.length)));
        const row = Math.min(rows.length - 1, Math.max(0, rows.length - 1 - Math.floor((event.clientY - box.top) / box.height * rows.length)));
        map.tip.textContent = `step ${step[column]}, layer ${row}: ${numberText(rows[row][column])}`;
        map.tip.style.display = "block";
        map.tip.style.left = `${Math.min(event.clientX - box.left + 20, box.width - 180)}px`;
        map.tip.style.top = `${map.canvas.offsetTop + 4}px`;
      });
      map.canvas.addEventListener("pointerleave", () => { map.tip.style.display = "none"; });
    }
  }
  function drawHeatmap(map) {
    const { rows, step } = map.run.layers;
    const values = rows.flat().filter((value) => value !== null);
    const low = values.reduce((a, b) => Math.min(a, b), 1), high = values.reduce((a, b) => Math.max(a, b), 0);
    map.note.textContent = `layer 0 at the bottom, layer ${rows.length - 1} at the top; steps ${step[0]} to ${step[step.length - 1]}; ` +
      `light ${numberText(low)}, strong ${numberText(high)}`;
    map.canvas.width = step.length;
    map.canvas.height = rows.length;
    map.canvas.style.height = `${Math.min(360, Math.max(60, rows.length * 9))}px`;
    const [from, to] = ["--heat0", "--heat1"].map((name) => cssValue(name).split(",").map(Number));
    const context = map.canvas.getContext("2d"), image = context.createImageData(step.length, rows.length);
    rows.forEach((row, layer) => row.forEach((value, column) => {
      const at = 4 * ((rows.length - 1 - layer) * step.length + column);
      const share = value === null ? 0 : high > low ? (value - low) / (high - low) : 0.5;
      for (let c = 0; c < 3; c++) image.data[at + c] = from[c] + share * (to[c] - from[c]);
      image.data[at + 3] = value === null ? 0 : 255;
    }));
    context.putImageData(image, 0, 0);
  }

  function listenToControls() {
    const axis = document.getElementById("axis");
    axis.addEventListener("change", () => { state.x = axis.value; zoom(null); });
    const smooth = document.getElementById("smooth");
    smooth.addEventListener("input", () => { state.smooth = smooth.value / 100; charts.forEach(draw); });
    const log = document.getElementById("log");
    log.addEventListener("change", () => { state.log = log.checked; charts.forEach(draw); });
    document.getElementById("zoomed").addEventListener("click", () => zoom(null));
  }
  function listenToTheme() {
    const root = document.documentElement, button = document.getElementById("theme");
    const dark = () => root.dataset.theme === "dark" ||
      (root.dataset.theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      drawAll();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  }
  function listenToFilter() {
    const filter = document.getElementById("filter");
    filter?.addEventListener("input", () => {
      for (const row of document.querySelectorAll("#all-keys tbody tr"))
        row.hidden = !row.textContent.toLowerCase().includes(filter.value.toLowerCase());
    });
  }
  // Videos run while they are in sight.
  function playWhatIsSeen() {
    const watch = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries)
        if (isIntersecting) target.play().catch(() => {}); else target.pause();
    });
    for (const video of document.querySelectorAll("video")) watch.observe(video);
  }

  const host = document.getElementById("charts");
  build(host);
  buildHeatmaps(host);
  listenToControls();
  listenToTheme();
  listenToFilter();
  playWhatIsSeen();
  drawAll();
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (width === window.innerWidth) return;
    width = window.innerWidth;
    drawAll();
  });
})();
