// A table of any length: only the rows in sight are in the document.
const ROW_PX = 30;
// As in report.css; an empty table is less high than it will be.
const TALLEST_PX = 472;
const OVERSCAN = 8;
const CHARACTER_PX = 7.6;
const PRINTED_ROWS = 40;

class Grid {
  // columns: {key, title, width, kind: "number"|"name"|"", value(row), text(row), draw(cell, row), hint}
  constructor(place, label, onSelect) {
    this.label = label;
    this.onSelect = onSelect;
    this.rows = [];
    this.shown = [];
    this.selected = null;
    this.query = "";
    this.keep = null;
    this.printing = false;
    this.table = make("table", { role: "grid", "aria-label": label });
    this.box = make("div", { class: "grid", tabindex: "0", role: "group", "aria-label": `${label}; arrow keys select a row` }, this.table);
    this.box.addEventListener("scroll", () => this.later(), { passive: true });
    this.box.addEventListener("keydown", (event) => this.key(event));
    place.replaceChildren(this.box);
  }

  set(columns, rows, sortKey, descending) {
    this.columns = columns;
    this.rows = rows;
    this.sortKey = sortKey;
    this.descending = descending;
    this.selected = null;
    this.heads = columns.map((column) =>
      make("th", { scope: "col", class: column.kind === "number" ? "number" : "", title: column.hint },
        make("button", { type: "button", onclick: () => this.sort(column.key) }, column.title)));
    this.body = make("tbody");
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-at]");
      if (row) this.select(this.shown[Number(row.dataset.at)]);
    });
    this.least = columns.reduce((sum, column) => sum + column.width, 0);
    this.table.style.minWidth = `${this.least}px`;
    fill(this.table,
      make("colgroup", {}, ...columns.map((column) => make("col", { width: `${(100 * column.width) / this.least}%` }))),
      make("thead", {}, make("tr", {}, ...this.heads)), this.body);
    this.update();
  }

  sort(key) {
    const column = this.columns.find((one) => one.key === key);
    this.descending = this.sortKey === key ? !this.descending : column.kind === "number" && column.first !== "up";
    this.sortKey = key;
    this.update();
  }

  filter(query, keep) {
    this.query = query.trim().toLowerCase();
    this.keep = keep;
    this.update();
  }

  update() {
    const words = this.query.split(/\s+/).filter(Boolean);
    this.shown = this.rows.filter((row) => (!this.keep || this.keep(row)) && words.every((word) => searchable(row).includes(word)));
    const { value } = this.columns.find((column) => column.key === this.sortKey);
    const sign = this.descending ? -1 : 1;
    const keyed = this.shown.map((row) => [value(row), row]);
    // What is not known goes last, whichever way round.
    keyed.sort(([a], [b]) => {
      const missingA = a === null || a === undefined, missingB = b === null || b === undefined;
      if (missingA || missingB) return missingA - missingB;
      return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
    });
    this.shown = keyed.map(([, row]) => row);
    this.columns.forEach((column, i) => {
      if (column.key === this.sortKey) this.heads[i].setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      else this.heads[i].removeAttribute("aria-sort");
    });
    this.table.setAttribute("aria-rowcount", this.shown.length + 1);
    this.box.scrollTop = 0;
    this.draw();
    this.changed?.(this.shown.length, this.rows.length);
  }

  later() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.draw();
    });
  }

  draw() {
    const first = this.printing ? 0 : Math.max(Math.floor(this.box.scrollTop / ROW_PX) - OVERSCAN, 0);
    const n = this.printing ? PRINTED_ROWS : Math.ceil(Math.max(this.box.clientHeight, TALLEST_PX) / ROW_PX) + 2 * OVERSCAN;
    this.scale = Math.max(this.box.clientWidth / this.least, 1);
    const part = this.shown.slice(first, first + n);
    const after = this.printing ? 0 : this.shown.length - first - part.length;
    const rows = part.map((row, i) => this.row(row, first + i));
    if (this.shown.length === 0) rows.push(this.wide("Nothing matches.", "none"));
    if (this.printing && this.shown.length > n) rows.push(this.wide(`and ${this.shown.length - n} more`, "none"));
    fill(this.body, this.space(first), ...rows, this.space(after));
  }

  wide(text, kind) {
    return make("tr", { class: "space" }, make("td", { colspan: this.columns.length, class: kind }, text));
  }

  space(n) {
    if (n <= 0) return null;
    const row = make("tr", { class: "space", "aria-hidden": "true" }, make("td", { colspan: this.columns.length }));
    row.style.height = `${n * ROW_PX}px`;
    return row;
  }

  row(row, at) {
    const line = make("tr", { "data-at": at, "aria-rowindex": at + 2, "aria-selected": row === this.selected });
    for (const column of this.columns) {
      const cell = make("td", { class: column.kind });
      const text = column.text ? column.text(row) : column.value(row);
      cell.textContent = text;
      if (column.kind === "name") {
        // Names of nodes share long beginnings: the middle goes, not the end.
        cell.textContent = shortened(String(text), Math.floor((column.width * this.scale - 20) / CHARACTER_PX));
        cell.title = text;
      }
      column.draw?.(cell, row);
      line.append(cell);
    }
    return line;
  }

  select(row, quiet) {
    this.selected = row ?? null;
    const at = this.shown.indexOf(row);
    if (at >= 0 && !this.printing) {
      const top = at * ROW_PX, height = this.box.clientHeight - 40;
      if (top < this.box.scrollTop) this.box.scrollTop = top;
      else if (top + ROW_PX > this.box.scrollTop + height) this.box.scrollTop = top + ROW_PX - height;
    }
    this.draw();
    if (!quiet && row) this.onSelect(row);
  }

  key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (step === undefined || event.target !== this.box || this.shown.length === 0) return;
    event.preventDefault();
    const at = this.shown.indexOf(this.selected);
    const next = at < 0 ? 0 : Math.min(Math.max(at + step, 0), this.shown.length - 1);
    this.select(this.shown[next]);
  }

  print(on) {
    this.printing = on;
    if (this.body) this.draw();
  }
}

// What a filter looks at, put together when first needed.
function searchable(row) {
  row.words ??= row.search().join("\n").toLowerCase();
  return row.words;
}
