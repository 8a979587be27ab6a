// Charts drawn by plotly, in the page's colours.
const BOUNDS = {
  compute: { name: "compute", dot: "compute", symbol: "circle" },
  memory: { name: "memory", dot: "memory-bound", symbol: "square" },
  overhead: { name: "overhead", dot: "overhead", symbol: "diamond" },
  unknown: { name: "not known", dot: "unknown", symbol: "circle-open" },
};
// Okabe and Ito's colours, dark enough for lines on both grounds; dashes go on where colours end.
const LINES = ["#0072b2", "#d98c00", "#009e73", "#b5578f", "#56a8d8", "#c8551b", "#8b9097"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const CONFIG = { displayModeBar: false, doubleClick: "reset" };

let plotly = null;
async function loadPlotly() {
  const text = atob(byId("plotly").textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) packed[i] = text.charCodeAt(i);
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
  byId("plotly").remove();
  plotly = window.Plotly;
}

// Custom properties as colours that plotly understands.
function colour(name) {
  const probe = byId("probe") ?? document.body.appendChild(make("span", { id: "probe", hidden: "" }));
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

function layout(more) {
  const text = colour("text"), muted = colour("muted"), line = colour("line");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, tickcolor: line, tickfont: { color: muted }, automargin: true };
  const { xaxis, yaxis, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
    margin: { l: 56, r: 16, t: 8, b: 44 },
    hoverlabel: { bgcolor: colour("raised"), bordercolor: line, font: { color: text, size: 12 }, align: "left", namelength: -1 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis },
    ...rest,
  };
}

const titled = (text) => ({ text, font: { color: colour("muted"), size: 12 }, standoff: 8 });

async function draw(place, traces, more) {
  // Sizes are given, so that a chart has its new size at once when the page is about to be printed.
  const size = { width: place.clientWidth, height: place.clientHeight };
  await plotly.react(place, traces, { ...layout(more), ...size }, CONFIG);
}

function onClick(place, event, handle) {
  place.removeAllListeners?.(event);
  place.on(event, handle);
}

// The icicle: groups by path, kernels as leaves. Kernels too small to be seen are one cell a group.
const SMALL = 0.004;

function tree(kernels, pathOf) {
  const root = { name: "", groups: new Map(), kernels: [], all: [], sum: 0 };
  for (const kernel of kernels) {
    let group = root;
    const add = () => { group.all.push(kernel); group.sum += kernel.median_ns; };
    add();
    for (const part of pathOf(kernel)) {
      if (!group.groups.has(part)) group.groups.set(part, { name: part, groups: new Map(), kernels: [], all: [], sum: 0 });
      group = group.groups.get(part);
      add();
    }
    group.kernels.push(kernel);
  }
  return root;
}

function cells(root, rootName, separator) {
  const least = root.sum * SMALL, found = [];
  const walk = (group, parent, name, depth) => {
    // A group in a group that has nothing else is one cell: backbone.stage1.
    while (group.groups.size === 1 && group.kernels.length === 0 && parent !== "") {
      [group] = group.groups.values();
      name += separator + group.name;
    }
    const id = String(found.length);
    found.push({ id, parent, name, value: group.sum, kernels: group.all, depth, group: true });
    const groups = [...group.groups.values()];
    const small = [...groups.filter((one) => one.sum < least).flatMap((one) => one.all), ...group.kernels.filter((one) => one.median_ns < least)];
    for (const one of groups) if (one.sum >= least) walk(one, id, one.name, depth + 1);
    for (const kernel of group.kernels) {
      if (kernel.median_ns >= least) found.push({ id: String(found.length), parent: id, name: kernel.name, value: kernel.median_ns, kernels: [kernel], depth: depth + 1 });
    }
    if (small.length) {
      const sum = small.reduce((total, kernel) => total + kernel.median_ns, 0);
      found.push({ id: String(found.length), parent: id, name: small.length === 1 ? small[0].name : `${small.length} small kernels`, value: sum, kernels: small, depth: depth + 1, small: true });
    }
  };
  walk(root, "", rootName, 0);
  return found;
}

// Text that runs from right to left would pull the share next to it along.
const isolated = (text) => (/[\u0590-\u08ff]/.test(text) ? `\u2068${text}\u2069` : text);

function boundOf(kernels) {
  const bounds = new Set(kernels.map((kernel) => kernel.bound ?? "unknown"));
  return bounds.size === 1 ? [...bounds][0] : "unknown";
}

async function drawIcicle(place, found, total, onSelect) {
  const levels = Math.max(...found.map((cell) => cell.depth)) + 1;
  const depth = place.clientWidth < 600 ? Math.min(levels, 3) : levels;
  const fits = Math.max(Math.floor((place.clientWidth / depth - 58) / 7.2), 6);
  const soft = Object.fromEntries(Object.keys(BOUNDS).map((bound) => [bound, colour(`${bound}-soft`)]));
  const group = colour("group"), text = colour("text");
  const colours = found.map((cell) => (cell.group ? group : soft[boundOf(cell.kernels)]));
  await draw(place, [{
    type: "icicle", ids: found.map((cell) => cell.id), parents: found.map((cell) => cell.parent),
    labels: found.map((cell) => isolated(plain(shortened(cell.name, fits)))), values: found.map((cell) => cell.value), branchvalues: "total",
    customdata: found.map((cell) => [percent(cell.value / total), hover(cell, total)]),
    texttemplate: "%{label} · %{customdata[0]}", hovertemplate: "%{customdata[1]}<extra></extra>",
    textposition: "middle left", textfont: { color: text, size: 12 }, sort: true,
    maxdepth: depth, marker: { colors: colours, line: { color: colour("surface"), width: 1 } },
    pathbar: { visible: true, thickness: 20, textfont: { color: text, size: 12 } }, tiling: { orientation: "h", pad: 0 },
  }], { margin: { l: 0, r: 0, t: 0, b: 0 }, uniformtext: { minsize: 10, mode: "hide" } });
  onClick(place, "plotly_icicleclick", (event) => onSelect(found[Number(event.points[0].id)]));
}

function hover(cell, total) {
  const lines = [`<b>${plain(shortened(cell.name, 90))}</b>`, `${ns(cell.value)} · ${percent(cell.value / total)}`];
  const [only] = cell.kernels;
  if (cell.kernels.length === 1) {
    if (only.ops) lines.push(plain(shortened(only.ops, 80)));
    if (only.bound) lines.push(`${BOUNDS[only.bound].name}, ${percent(only.of_roof)} of its roof`);
  } else lines.push(counted(cell.kernels.length, "kernel"));
  return lines.join("<br>");
}

async function drawRoofline(place, kernels, ceiling, total, selected, onSelect) {
  const points = kernels.filter(isDrawn);
  const traces = Object.entries(BOUNDS).map(([bound, { name, symbol }]) => {
    const own = points.filter((kernel) => (kernel.bound ?? "unknown") === bound);
    return {
      type: "scatter", mode: "markers", name, x: own.map(intensity), y: own.map((kernel) => kernel.flops_per_s),
      customdata: own.map((kernel) => [kernel.at, `<b>${plain(shortened(kernel.name, 80))}</b><br>${plain(shortened(kernel.ops, 80))}<br>${ns(kernel.median_ns)} · ${percent(kernel.median_ns / total)}<br>${tens(kernel.flops_per_s, "FLOP/s")} at ${threeDigits(intensity(kernel))} FLOP/byte${known(kernel.of_roof) ? `<br>${percent(kernel.of_roof)} of its roof` : ""}`]),
      hovertemplate: "%{customdata[1]}<extra></extra>",
      marker: { symbol, color: colour(bound), opacity: 0.72, size: own.map((kernel) => Math.max(5, 76 * Math.sqrt(kernel.median_ns / total))), line: { width: 1, color: colour(bound === "unknown" ? bound : "surface") } },
    };
  }).filter((trace) => trace.x.length);
  const annotations = [];
  const xs = points.map(intensity), ys = points.map((kernel) => kernel.flops_per_s);
  if (ceiling) {
    const ridge = ceiling.flops_per_s / ceiling.bytes_per_s;
    const low = Math.min(...xs, ridge) / 4, high = Math.max(...xs, ridge) * 4;
    traces.unshift({ type: "scatter", mode: "lines", hoverinfo: "skip",
      x: [low, ridge, high], y: [low * ceiling.bytes_per_s, ceiling.flops_per_s, ceiling.flops_per_s], line: { color: colour("text"), width: 1.5 } });
    ys.push(ceiling.flops_per_s);
    const font = { color: colour("muted"), size: 12 };
    annotations.push(
      { x: Math.log10(high), y: Math.log10(ceiling.flops_per_s), text: `matrix product ${tens(ceiling.flops_per_s, "FLOP/s")}`, showarrow: false, xanchor: "right", yanchor: "bottom", font },
      { x: Math.log10(low) + 0.4 * Math.log10(ridge / low), y: Math.log10(low * ceiling.bytes_per_s) + 0.4 * Math.log10(ridge / low), text: `copy ${tens(ceiling.bytes_per_s, "B/s")}`, showarrow: false, xanchor: "right", yanchor: "bottom", xshift: -4, font });
  }
  if (points.includes(selected)) {
    traces.push({ type: "scatter", mode: "markers", showlegend: false, hoverinfo: "skip", x: [intensity(selected)], y: [selected.flops_per_s],
      marker: { symbol: "circle-open", color: colour("accent"), size: 14 + 76 * Math.sqrt(selected.median_ns / total), line: { width: 2.5 } } });
  }
  await draw(place, traces, {
    annotations, hovermode: "closest", showlegend: false,
    xaxis: { type: "log", title: titled("operations per byte of least traffic"), exponentformat: "SI", dtick: decades(xs) },
    yaxis: { type: "log", title: titled("operations per second"), exponentformat: "SI", dtick: decades(ys) },
  });
  onClick(place, "plotly_click", (event) => {
    const at = event.points.find((point) => point.customdata)?.customdata[0];
    if (at !== undefined) onSelect(kernels.find((kernel) => kernel.at === at));
  });
}

// Ticks at 1, 2 and 5 where there are few decades.
const decades = (values) => (Math.max(...values) / Math.min(...values) < 150 ? "D2" : 1);
const intensity = (kernel) => kernel.flops / kernel.moved_bytes;

const STROKES = { solid: "", dash: "6 4", dot: "2 3", dashdot: "6 3 2 3", longdash: "9 4" };

// Names of lines as text of the page, which wraps where plotly's legend does not.
function lineKey(place, traces) {
  fill(place, ...traces.map((trace) => {
    const stroke = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, value] of Object.entries({ width: 26, height: 8, "aria-hidden": "true" })) stroke.setAttribute(name, value);
    for (const [name, value] of Object.entries({ x1: 0, x2: 26, y1: 4, y2: 4, stroke: trace.line.color, "stroke-width": 2, "stroke-dasharray": STROKES[trace.line.dash] })) path.setAttribute(name, value);
    stroke.append(path);
    return make("span", {}, stroke, " ", make("bdi", {}, trace.meta));
  }));
}

const line = (i) => ({ color: LINES[i % LINES.length], dash: DASHES[Math.floor(i / LINES.length) % DASHES.length], width: 2 });

async function drawMemory(place) {
  const traces = data.targets.map((target, i) => ({ target, i })).filter(({ target }) => target.memory.length).map(({ target, i }) => ({
    type: "scatter", mode: "lines", meta: target.name, line: line(i),
    x: target.memory.map(([at]) => at / 1e9), y: target.memory.map(([, size]) => size / 2 ** 20),
    customdata: target.memory.map(([at, size, step]) => `${plain(target.name)}<br>${bytes(size)} after ${ns(at)}<br>${plain(step)}`),
    hovertemplate: "%{customdata}<extra></extra>",
  }));
  await draw(place, traces, {
    hovermode: "closest", xaxis: { title: titled("seconds since the process started"), rangemode: "tozero" },
    yaxis: { title: titled("resident MiB"), rangemode: "tozero" }, showlegend: false,
  });
  lineKey(byId("memory-key"), traces);
}

async function drawLinks(place) {
  const sources = [...new Set(data.links.map((link) => link.source))];
  const destinations = [...new Set(data.links.map((link) => link.destination))];
  // A handoff of nothing has no logarithm; it is drawn at the least time a clock tells.
  const traces = data.links.filter((link) => link.points.length).map((link) => ({
    type: "scatter", mode: "lines+markers", meta: `${link.source} → ${link.destination}`,
    line: { color: LINES[sources.indexOf(link.source) % LINES.length], dash: DASHES[destinations.indexOf(link.destination) % DASHES.length], width: 2 },
    marker: { size: 5 }, x: link.points.map(([size]) => size), y: link.points.map(([, median]) => Math.max(median, 1)),
    customdata: link.points.map(([size, median, low, high]) => `${plain(link.source)} → ${plain(link.destination)}<br>${bytes(size)}: ${ns(median)}<br>p10–p90 ${spread(low, high)}`),
    hovertemplate: "%{customdata}<extra></extra>",
  }));
  const sizes = [...new Set(data.links.flatMap((link) => link.points.map(([size]) => size)))].sort((a, b) => a - b);
  const every = Math.ceil(sizes.length / 10);
  const ticks = sizes.filter((_, i) => i % every === 0);
  await draw(place, traces, {
    hovermode: "closest",
    xaxis: { type: "log", title: titled("size of the tensor"), tickvals: ticks, ticktext: ticks.map((size) => bytes(size).replace(/\.0+(?= )/, "")) },
    yaxis: { type: "log", title: titled("added time"), tickvals: [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9], ticktext: ["1 ns", "10 ns", "100 ns", "1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s"] },
    showlegend: false,
  });
  lineKey(byId("links-key"), traces);
}
