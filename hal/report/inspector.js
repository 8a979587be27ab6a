// What was selected, with its nodes, operators, modules and source lines.
const LISTED_NODES = 300;

function nodeTable(numbers) {
  const { name, op, module, source } = data.nodes;
  if (numbers.length === 0) return make("p", { class: "hint" }, "Mapped to no node of the graph.");
  const columns = [["Node", name], ["Op", op], ["Module", module], ["Source", source]]
    .filter(([, values]) => numbers.some((i) => values[i]));
  const rows = numbers.slice(0, LISTED_NODES).map((i) =>
    make("tr", {}, ...columns.map(([, values]) => make("td", {}, make("code", {}, values[i] || NOTHING)))));
  if (numbers.length > LISTED_NODES) {
    rows.push(make("tr", {}, make("td", { colspan: columns.length }, `and ${counted(numbers.length - LISTED_NODES, "node")} more`)));
  }
  return make("div", { class: "nodes", tabindex: "0", role: "region", "aria-label": "Nodes" },
    make("table", {}, make("thead", {}, make("tr", {}, ...columns.map(([title]) => make("th", { scope: "col" }, title)))),
      make("tbody", {}, ...rows)));
}

function inspect(panel, title, pairs, numbers) {
  fill(panel, make("h3", {}, make("bdi", {}, title)), make("dl", { class: "facts" }, ...definition(pairs)), nodeTable(numbers));
}

function inspectNothing(panel, hint) {
  fill(panel, make("p", { class: "hint" }, hint));
}

function inspectKernel(panel, kernel, totalNs) {
  inspect(panel, kernel.name, [
    ["Time", ns(kernel.median_ns), percent(kernel.median_ns / totalNs)],
    ["p10–p90", spread(kernel.p10_ns, kernel.p90_ns), `n = ${kernel.n}`],
    kernel.type ? ["Type", kernel.type] : null,
    kernel.device ? ["Ran on", kernel.device] : null,
    known(kernel.flops) ? ["Work", tens(kernel.flops, "FLOP")] : null,
    known(kernel.moved_bytes) ? ["Least traffic", bytes(kernel.moved_bytes), kernel.weight_bytes ? `${bytes(kernel.weight_bytes)} of it weights` : ""] : null,
    known(kernel.flops_per_s) ? ["Reached", tens(kernel.flops_per_s, "FLOP/s"), tens(kernel.bytes_per_s, "B/s")] : null,
    kernel.bound ? ["Limit", BOUNDS[kernel.bound].name, `${percent(kernel.of_roof)} of its roof`] : null,
  ], kernel.nodes);
}

function inspectGroup(panel, title, kernels, totalNs) {
  const sum = kernels.reduce((total, kernel) => total + kernel.median_ns, 0);
  const nodes = [...new Set(kernels.flatMap((kernel) => kernel.nodes))];
  inspect(panel, title, [
    ["Time", ns(sum), percent(sum / totalNs)],
    ["Kernels", kernels.length.toLocaleString("en")],
    ["Nodes", nodes.length.toLocaleString("en")],
  ], nodes);
}
