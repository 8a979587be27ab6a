// Targets against each other, unit by unit.
const compared = data.targets.map((target, at) => ({ ...target, at })).filter(({ at }) => data.units.costs.some((costs) => costs[at]));
const rivals = compared.filter((target) => target.status === "ok");

const units = data.units.name.map((name, i) => {
  const costs = data.units.costs[i];
  const ranked = rivals.filter(({ at }) => costs[at]).sort((a, b) => costs[a.at][0] - costs[b.at][0]);
  const best = ranked[0] ?? null;
  return {
    order: i, name, nodes: data.units.nodes[i], flops: data.units.flops[i], costs, best,
    best_ns: best ? costs[best.at][0] : null,
    lead: ranked.length > 1 ? costs[ranked[1].at][0] / (costs[best.at][0] || 1) : null,
    // Percentiles that overlap: the lead may be noise.
    close: ranked.length > 1 && costs[ranked[1].at][1] <= costs[best.at][2],
    ops: [...new Set(data.units.nodes[i].map((n) => data.nodes.op[n]).filter(Boolean))].join(" + "),
    search() { return [name, this.ops, best?.name ?? "", ...nodeWords(this.nodes)]; },
  };
});

// Names without what all of them share.
function shortNames(targets) {
  const devices = new Set(targets.map(({ name }) => name.split("/")[0]));
  return new Map(targets.map((target) => [target.at, devices.size === 1 && target.name.includes("/") ? target.name.slice(target.name.indexOf("/") + 1) : target.name]));
}
const short = shortNames(compared);

const unitGrid = new Grid(byId("unit-grid"), "Units", (unit) => {
  inspect(byId("unit-inspector"), unit.name, [
    ...compared.filter(({ at }) => unit.costs[at]).map(({ at }) => [short.get(at), ns(unit.costs[at][0]), `p10–p90 ${spread(unit.costs[at][1], unit.costs[at][2])}`]),
    known(unit.flops) ? ["Work", tens(unit.flops, "FLOP")] : null,
  ], unit.nodes);
});
unitGrid.changed = (n, all) => {
  byId("unit-count").textContent = n === all ? counted(all, "unit") : `${n.toLocaleString("en")} of ${counted(all, "unit")}`;
};

function unitColumns() {
  return [
    { key: "order", title: "#", hint: "Topological order", width: 56, kind: "number", first: "up", value: (unit) => unit.order },
    { key: "name", title: "Unit", width: 240, kind: "name", value: (unit) => unit.name },
    { key: "ops", title: "Operators", width: 170, kind: "name", value: (unit) => unit.ops },
    ...compared.map((target) => ({
      key: `target ${target.at}`, title: short.get(target.at).replace("/", "/\u200b") + (target.status === "ok" ? "" : ` (${target.status})`),
      hint: target.name, width: 112, kind: "number",
      value: (unit) => unit.costs[target.at]?.[0] ?? null, text: (unit) => ns(unit.costs[target.at]?.[0]),
      draw: (cell, unit) => {
        const cost = unit.costs[target.at];
        if (!cost || !unit.best) return;
        if (unit.best.at === target.at) cell.classList.add("win");
        // Full shade at eight times the best: three doublings.
        const shade = Math.min(Math.log2(Math.max(cost[0] / (unit.best_ns || 1), 1)) / 3, 1);
        cell.style.background = `color-mix(in srgb, var(--memory) ${Math.round(38 * shade)}%, transparent)`;
      },
    })),
    { key: "best", title: "Best", width: 150, kind: "name", value: (unit) => (unit.best ? short.get(unit.best.at) : null), text: (unit) => (unit.best ? short.get(unit.best.at) : NOTHING) },
    { key: "lead", title: "Lead", hint: "Time of the runner-up over that of the best; ≈ where their p10–p90 overlap", width: 84, kind: "number", value: (unit) => unit.lead, text: (unit) => (unit.lead === null ? NOTHING : `${unit.close ? "≈ " : ""}${times(unit.lead)}`) },
  ];
}

function showUnits() {
  byId("layers-part").hidden = units.length === 0;
  if (units.length === 0) return;
  inspectNothing(byId("unit-inspector"), "Select a unit to see its nodes and what it costs where.");
  unitGrid.set(unitColumns(), units, "order", false);
  unitSums();
}

function unitSums() {
  const whole = units.filter((unit) => rivals.every(({ at }) => unit.costs[at]));
  const totals = rivals.map((target) => ({ target, sum: whole.reduce((sum, unit) => sum + unit.costs[target.at][0], 0), wins: units.filter((unit) => unit.best === target).length }));
  totals.sort((a, b) => a.sum - b.sum);
  const best = whole.reduce((sum, unit) => sum + unit.best_ns, 0);
  const longest = Math.max(...totals.map(({ sum }) => sum), 1);
  const row = (name, sum, note, kind) => [
    make("span", { class: "name" }, kind ? make("strong", {}, name) : make("bdi", {}, name)),
    make("span", { class: "number" }, kind ? make("strong", {}, ns(sum)) : ns(sum)),
    make("span", { class: `track ${kind}`, width: `${(100 * sum) / longest}%` }),
    make("span", { class: "note-cell key" }, note),
  ];
  const scope = whole.length === units.length ? "" : `Over the ${whole.length.toLocaleString("en")} of ${counted(units.length, "unit")} that every target tells. `;
  const gain = totals.length && totals[0].sum ? 1 - best / totals[0].sum : 0;
  fill(byId("unit-sums"), make("div", { class: "panel-head" }, make("h3", {}, "Sum of units")),
    make("div", { class: "sums" },
      ...totals.flatMap(({ target, sum, wins }) => row(target.name, sum, `best in ${wins.toLocaleString("en")}`, "")),
      ...(totals.length > 1 ? row("best of each unit", best, gain < 0.0005 ? "no gain" : `${percent(gain)} less`, "best-of") : [])),
    make("p", { class: "note" }, `${scope}Best of each unit leaves out what handing tensors over costs; a plan pays for that.`));
}
