// One target: sums, icicle, table of kernels, roofline.
const state = { target: 0, grouping: "module", kernel: null };
const hasModules = data.nodes.module.some(Boolean);
const GROUPINGS = [hasModules ? ["module", "module"] : null, ["ops", "operator"], ["type", "kernel type"]].filter(Boolean);
if (!hasModules) state.grouping = "ops";

const kernelCache = [];
function kernelsOf(at) {
  const table = data.targets[at]?.kernels;
  if (!table) return [];
  kernelCache[at] ??= table.name.map((name, i) => ({
    at: i, name, type: table.type[i], device: table.device[i], ops: table.ops[i], nodes: table.nodes[i], order: table.order[i],
    median_ns: table.median_ns[i], p10_ns: table.p10_ns[i], p90_ns: table.p90_ns[i], n: table.n[i],
    flops: table.flops[i], moved_bytes: table.moved_bytes[i], weight_bytes: table.weight_bytes[i],
    flops_per_s: rate(table.flops[i], table.median_ns[i]), bytes_per_s: rate(table.moved_bytes[i], table.median_ns[i]),
    bound: table.bound[i], of_roof: table.of_roof[i],
    search() { return [name, this.type, this.ops, this.bound ?? "", ...nodeWords(this.nodes)]; },
  }));
  return kernelCache[at];
}

const isDrawn = (kernel) => kernel.flops > 0 && kernel.moved_bytes > 0 && kernel.median_ns > 0;
const rate = (amount, timeNs) => (known(amount) && timeNs > 0 ? (amount / timeNs) * 1e9 : null);
const nodeWords = (numbers) => numbers.flatMap((i) => [data.nodes.name[i], data.nodes.op[i], data.nodes.module[i], data.nodes.source[i]]);

// The deepest module that holds all of the kernel's nodes: a fused kernel belongs to what it fuses.
function modulePath(kernel) {
  if (kernel.nodes.length === 0) return ["unattributed"];
  const paths = kernel.nodes.map((i) => data.nodes.module[i]).filter(Boolean).map((module) => module.split("."));
  if (paths.length === 0) return ["no module"];
  let n = 0;
  while (n < paths[0].length && paths.every((path) => path[n] === paths[0][n])) n += 1;
  return paths[0].slice(0, n);
}

const pathOf = {
  module: modulePath,
  ops: (kernel) => [kernel.nodes.length ? kernel.ops || "unknown operator" : "unattributed"],
  type: (kernel) => [kernel.type || "unknown type"],
};

const kernelGrid = new Grid(byId("kernel-grid"), "Kernels", (kernel) => selectKernel(kernel, "grid"));
kernelGrid.changed = (n, all) => {
  byId("kernel-count").textContent = n === all ? counted(all, "kernel") : `${n.toLocaleString("en")} of ${counted(all, "kernel")}`;
};

function kernelColumns(table) {
  const worked = table.flops.some(known), limited = table.bound.some(Boolean);
  const total = table.total_ns || 1;
  return [
    table.ordered ? { key: "order", title: "#", hint: "Order of execution", width: 52, kind: "number", first: "up", value: (k) => k.order } : null,
    { key: "time", title: "Time", hint: "Median over the instrumented runs", width: 84, kind: "number", value: (k) => k.median_ns, text: (k) => ns(k.median_ns) },
    { key: "share", title: "Share", hint: "Of the sum of kernels", width: 84, kind: "number", value: (k) => k.median_ns, text: (k) => percent(k.median_ns / total),
      draw: (cell, k) => { cell.classList.add("meter"); cell.style.setProperty("--share", `${(100 * k.median_ns) / (Math.max(...table.median_ns) || 1)}%`); } },
    { key: "name", title: "Kernel", width: 210, kind: "name", value: (k) => k.name, text: (k) => (k.device ? `${k.name} on ${k.device}` : k.name) },
    { key: "spread", title: "p10–p90", hint: "Sorts by width over median", width: 122, kind: "number", value: (k) => (k.p90_ns - k.p10_ns) / (k.median_ns || 1), text: (k) => spread(k.p10_ns, k.p90_ns) },
    { key: "type", title: "Type", width: 138, kind: "name", value: (k) => k.type },
    { key: "ops", title: "Operators", width: 150, kind: "name", value: (k) => k.ops || (k.nodes.length ? "" : "unattributed") },
    { key: "nodes", title: "Nodes", width: 68, kind: "number", value: (k) => k.nodes.length },
    worked ? { key: "flops", title: "FLOP/s", hint: "Reached, by the nodes' work", width: 88, kind: "number", value: (k) => k.flops_per_s, text: (k) => tens(k.flops_per_s, "") } : null,
    worked ? { key: "bytes", title: "B/s", hint: "Reached, by the nodes' least traffic", width: 84, kind: "number", value: (k) => k.bytes_per_s, text: (k) => tens(k.bytes_per_s, "") } : null,
    limited ? { key: "bound", title: "Limit", hint: "Which roof is lower, and the share of it that was reached; sorts by the share", width: 142, kind: "", value: (k) => k.of_roof, text: () => "",
      draw: (cell, k) => { const bound = BOUNDS[k.bound ?? "unknown"]; cell.append(make("i", { class: `dot ${bound.dot}` }), k.bound ? `${bound.name} ${percent(k.of_roof)}` : NOTHING); } } : null,
  ].filter(Boolean);
}

const CLASSES = [["", "all kernels"], ["compute", "limited by compute"], ["memory", "limited by memory"], ["overhead", "overhead"], ["unattributed", "unattributed"]];
const keepers = { "": null, unattributed: (kernel) => kernel.nodes.length === 0 };
const filterKernels = () => {
  const chosen = byId("kernel-class").value;
  kernelGrid.filter(byId("kernel-filter").value, chosen in keepers ? keepers[chosen] : (kernel) => kernel.bound === chosen);
};

function showTarget(at) {
  state.target = at;
  state.kernel = null;
  const target = data.targets[at], table = target?.kernels;
  for (const place of document.querySelectorAll(".of")) place.textContent = target?.name ?? "";
  byId("kernels-part").hidden = !table;
  // Without ceilings and without work there is nothing to draw, and the line above the panel says so.
  byId("limits-part").hidden = !table || !(table.bound.some(Boolean) || table.flops.some((flops) => flops > 0));
  byId("no-kernels").hidden = Boolean(table) || !data.targets.some((one) => one.kernels);
  byId("no-kernels").textContent = `${target?.name ?? ""} has no kernel times: ${target?.missing ?? ""}`;
  if (!table) return;
  sums(target, table);
  bounds(table);
  inspectNothing(byId("kernel-inspector"), "Select a kernel, in the chart or in the table, to see its nodes, modules and source lines.");
  fill(byId("kernel-class"), ...CLASSES.map(([value, text]) => make("option", { value }, text)));
  byId("kernel-filter").value = "";
  kernelGrid.query = "";
  kernelGrid.keep = null;
  kernelGrid.set(kernelColumns(table), kernelsOf(at), "time", true);
}

function sums(target, table) {
  const whole = target.median_ns, outside = whole === null ? 0 : whole - table.total_ns;
  const mapped = table.total_ns - table.unattributed_ns;
  fill(byId("sums"), ...definition([
    ["End to end", ns(whole)],
    ["Sum of kernels", ns(table.total_ns), whole ? `${percent(table.total_ns / whole)} of end to end` : ""],
    ["Unattributed", ns(table.unattributed_ns), percent(table.unattributed_ns / (table.total_ns || 1))],
    ["With instruments", ns(table.instrumented_ns), known(table.overhead) ? `${table.overhead >= 0 ? "+" : "−"}${percent(Math.abs(table.overhead))}` : ""],
    ["Kernels", table.name.length.toLocaleString("en")],
  ]));
  if (table.inflated) byId("sums").append(make("div", {}, make("dt", {}, "Kernel times"), make("dd", {}, make("span", { class: "badge warn" }, "inflated"), make("small", {}, " by the instruments"))));
  stack(byId("reconcile"), byId("reconcile-key"), [
    ["attributed", "in kernels of known nodes", mapped, ns(mapped)],
    ["unattributed", "unattributed", table.unattributed_ns, ns(table.unattributed_ns)],
    ["outside", "outside kernels", outside, ns(outside)],
  ]);
  if (outside < 0) byId("reconcile-key").append(make("span", {}, `the kernels sum to ${ns(-outside)} more than the plain run takes: instruments slow them, or some run at once`));
  const lost = kernelsOf(state.target).filter((kernel) => kernel.nodes.length === 0);
  fill(byId("lost"),
    lost.length ? names(`Unattributed: ${counted(lost.length, "kernel")}`, lost.map((kernel) => `${kernel.name} ${ns(kernel.median_ns)}`)) : null,
    table.unknown.length ? names(`In no kernel: ${counted(table.unknown.length, "node")}`, table.unknown) : null,
    table.folded.length ? names(`Computed at compile time: ${counted(table.folded.length, "node")}`, table.folded) : null);
}

function names(title, texts) {
  const shown = texts.slice(0, LISTED_NODES).flatMap((text) => [make("code", {}, text), ", "]).slice(0, -1);
  if (texts.length > LISTED_NODES) shown.push(` and ${texts.length - LISTED_NODES} more`);
  return make("details", {}, make("summary", {}, title), ...shown);
}

function bounds(table) {
  const kernels = kernelsOf(state.target);
  stack(byId("bounds"), byId("bounds-key"), Object.entries(BOUNDS).map(([bound, { name, dot }]) => {
    const sum = kernels.filter((kernel) => (kernel.bound ?? "unknown") === bound).reduce((total, kernel) => total + kernel.median_ns, 0);
    return [dot, name, sum, `${percent(sum / (table.total_ns || 1))}`];
  }));
}

async function drawTargetCharts() {
  const target = data.targets[state.target], table = target?.kernels;
  if (!table || !plotly) return;
  await drawKernelIcicle(table);
  await drawKernelRoofline(target, table);
}

async function drawKernelIcicle(table) {
  const seen = new Set(kernelsOf(state.target).map((kernel) => kernel.bound ?? "unknown"));
  fill(byId("icicle-key"), ...(seen.size > 1 || !seen.has("unknown") ? Object.entries(BOUNDS) : []).filter(([bound]) => seen.has(bound)).map(([, { name, dot }]) =>
    make("span", {}, make("i", { class: `dot ${dot}` }), name)));
  byId("icicle-title").textContent = `Kernels by ${GROUPINGS.find(([key]) => key === state.grouping)[1]}`;
  const root = tree(kernelsOf(state.target), pathOf[state.grouping]);
  const found = cells(root, data.model || "model", ".");
  await drawIcicle(byId("icicle"), found, table.total_ns || 1, (cell) => {
    if (cell.kernels.length === 1) selectKernel(cell.kernels[0], "icicle");
    else inspectGroup(byId("kernel-inspector"), cell.name, cell.kernels, table.total_ns || 1);
  });
}

async function drawKernelRoofline(target, table) {
  const kernels = kernelsOf(state.target);
  const placed = kernels.filter(isDrawn);
  byId("roofline").hidden = placed.length === 0;
  const rest = kernels.filter((kernel) => !placed.includes(kernel));
  const restNs = rest.reduce((sum, kernel) => sum + kernel.median_ns, 0);
  const notes = [];
  if (rest.length) notes.push(`${counted(rest.length, "kernel")} (${percent(restNs / (table.total_ns || 1))} of the time) ${rest.length === 1 ? "has" : "have"} no arithmetic or unknown work and ${rest.length === 1 ? "is" : "are"} not drawn.`);
  if (placed.length) notes.push(`Area: share of time. Overhead: less than ${percent(data.overhead_below)} of its roof. Above the roof: the data stayed in a cache.`);
  byId("roofline-note").textContent = notes.join(" ");
  if (placed.length) await drawRoofline(byId("roofline"), kernels, target.ceiling, table.total_ns || 1, state.kernel, (kernel) => selectKernel(kernel, "roofline"));
}

function selectKernel(kernel, from) {
  state.kernel = kernel;
  const target = data.targets[state.target];
  inspectKernel(byId("kernel-inspector"), kernel, target.kernels.total_ns || 1);
  if (from !== "grid") kernelGrid.select(kernel, true);
  if (from === "roofline") byId("kernel-inspector").scrollIntoView({ block: "center" });
  if (plotly) drawKernelRoofline(target, target.kernels);
}
