// Figures as texts, by the rules of hal/units.py, and elements made of texts only: nothing is ever parsed as HTML.
const NOTHING = "–";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function threeDigits(value) {
  const size = Math.abs(value);
  return size >= 99.95 ? value.toFixed(0) : size >= 9.995 ? value.toFixed(1) : value.toFixed(2);
}

function stepped(value, steps) {
  for (const [size, name] of steps) {
    if (Math.abs(value) >= size * 0.9995) return `${threeDigits(value / size)} ${name}`;
  }
  const [size, name] = steps[steps.length - 1];
  return `${threeDigits(value / size)} ${name}`;
}

const NS = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]];
const BYTES = [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "B"]];
const TENS = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]];
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const ns = (value) => (known(value) ? (value === 0 ? "0 ns" : stepped(value, NS)) : NOTHING);
const bytes = (value) => (known(value) ? (value < 1024 ? `${value} B` : stepped(value, BYTES)) : NOTHING);
const tens = (value, unit) => (known(value) ? (value === 0 ? `0 ${unit}` : stepped(value, TENS) + unit) : NOTHING);
const percent = (value) => (known(value) ? value > 0 && value < 0.0005 ? "<0.1%" : `${(100 * value).toFixed(Math.abs(value) < 0.0995 ? 1 : 0)}%` : NOTHING);
const times = (value) => (known(value) ? `${threeDigits(value)}×` : NOTHING);
const counted = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

function spread(low, high) {
  const [a, aUnit] = ns(low).split(" ");
  const [b, bUnit] = ns(high).split(" ");
  return aUnit === bUnit ? `${a}–${b} ${bUnit}` : `${a} ${aUnit}–${b} ${bUnit}`;
}

// The middle goes, because names of nodes share long beginnings and differ at the end.
function shortened(text, limit) {
  if (text.length <= limit) return text;
  const head = Math.max(Math.floor((limit - 1) / 2), 1);
  return `${text.slice(0, head)}…${text.slice(text.length - Math.max(limit - 1 - head, 1))}`;
}

// Plotly reads some tags and entities in its texts; this keeps a name what it is.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === "class") element.className = value;
    else if (name === "width") element.style.width = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function fill(element, ...children) {
  element.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
}

function definition(pairs) {
  return pairs.filter(Boolean).map(([name, value, more]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value, more ? make("small", {}, ` ${more}`) : null)));
}

// A bar of parts that add up, and its key. Parts: [class, name, value, text].
function stack(bar, key, parts) {
  const shown = parts.filter(([, , value]) => value > 0);
  const sum = shown.reduce((total, [, , value]) => total + value, 0) || 1;
  fill(bar, ...shown.map(([kind, , value]) => make("span", { class: kind, width: `${(100 * value) / sum}%` })));
  bar.setAttribute("aria-label", shown.map(([, name, , text]) => `${name} ${text}`).join(", "));
  fill(key, ...shown.map(([kind, name, , text]) =>
    make("span", {}, make("i", { class: `dot ${kind}` }), `${name} ${text}`)));
}
