// Brings the page up: choices, colours, charts when they come into sight, printing.
const picker = byId("target");
fill(picker, ...data.targets.map((target, at) => make("option", { value: String(at) }, target.kernels ? target.name : `${target.name} (no kernels)`)));
const first = Math.max(data.targets.findIndex((target) => target.kernels), 0);
picker.value = String(first);
picker.addEventListener("change", () => {
  showTarget(Number(picker.value));
  drawTargetCharts();
});

fill(byId("grouping"), ...GROUPINGS.map(([key, text]) => make("button", {
  type: "button", "aria-pressed": String(key === state.grouping),
  onclick: (event) => {
    state.grouping = key;
    for (const button of byId("grouping").children) button.setAttribute("aria-pressed", String(button === event.currentTarget));
    drawTargetCharts();
  },
}, text)));
byId("kernel-filter").addEventListener("input", filterKernels);
byId("kernel-class").addEventListener("change", filterKernels);
byId("unit-filter").addEventListener("input", () => unitGrid.filter(byId("unit-filter").value, null));

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.style.colorScheme || (systemDark.matches ? "dark" : "light")) === "dark";
const showTheme = () => byId("theme").setAttribute("aria-pressed", String(isDark()));
byId("theme").addEventListener("click", () => {
  document.documentElement.style.colorScheme = isDark() ? "light" : "dark";
  showTheme();
  drawAll();
});
systemDark.addEventListener("change", () => { showTheme(); drawAll(); });
showTheme();

const memoryMeasured = data.targets.some((target) => target.memory.length);
const linksMeasured = data.links.some((link) => link.points.length);
byId("memory-part").hidden = !memoryMeasured;
if (byId("links-part")) byId("links-part").hidden = !linksMeasured;

async function drawAll() {
  if (!plotly) return;
  await drawTargetCharts();
  if (memoryMeasured) await drawMemory(byId("memory-chart"));
  if (linksMeasured) await drawLinks(byId("links-chart"));
}

const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-20% 0px -70% 0px" });
for (const section of document.querySelectorAll("main > section")) watcher.observe(section);

let resized = null;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => { kernelGrid.later(); unitGrid.later(); drawAll(); }, 120);
});

let before = "";
function print(on) {
  const root = document.documentElement;
  if (on) before = root.style.colorScheme;
  root.style.colorScheme = on ? "light" : before;
  root.classList.toggle("printing", on);
  kernelGrid.print(on);
  unitGrid.print(on);
  drawAll();
}
addEventListener("beforeprint", () => print(true));
addEventListener("afterprint", () => print(false));

showTarget(first);
showUnits();
// The words and tables are there before the charts are.
requestAnimationFrame(() => setTimeout(async () => {
  try {
    await loadPlotly();
    await drawAll();
    document.documentElement.dataset.ready = "true";
  } catch (error) {
    for (const place of document.querySelectorAll(".chart")) place.textContent = `The chart cannot be drawn: ${error.message}`;
    throw error;
  }
}, 0));
