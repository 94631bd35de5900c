// Shows every answer of the original beside that of a copy: search, filters, sorting, and one item at a time.
// A dossier's page holds this file with its data, and JupyterLab gets it through anywidget. It loads and sends nothing.
// Texts become text nodes and attributes only, so that nothing in them is ever read as markup.

const FIRST = 20; // rows that are shown at first
const STEP = 100; // and added when more are asked for
const RIGHT = " ✓";
const collator = new Intl.Collator("en", { numeric: true });

const COLUMNS = [
  { title: "item", value: (row) => row.item.id },
  { title: "task", value: (row) => row.task, optional: true },
  { title: "copy", value: (row) => row.recipe, optional: true },
  { title: "what happened", value: (row) => row.kind, order: (row) => row.rank },
  { title: "right answer", value: (row) => row.item.right, optional: true },
  { title: "original", value: (row) => row.before },
  { title: "copy said", value: (row) => row.after },
  { title: "right answer's change", value: (row) => points(row.shift), order: (row) => row.shift ?? 2, optional: true },
];

const FILTERS = [
  { name: "task", label: "Task", values: (row) => [row.task] },
  { name: "recipe", label: "Copy", values: (row) => [row.recipe] },
  { name: "kind", label: "What happened", values: (row) => [row.kind], order: (row) => row.rank },
  { name: "group", label: "Group", values: (row) => row.item.tags },
];

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function points(share) {
  if (share === null) return "–";
  const number = (100 * Math.abs(share)).toFixed(1);
  return number === "0.0" ? "0.0 points" : `${share > 0 ? "+" : "−"}${number} points`;
}

function percent(share) {
  return share === null || share === undefined ? "–" : `${(100 * share).toFixed(1)} %`;
}

// One object for each row of the data, with all that can be searched in one lower-case text.
export function unpack(data) {
  return data.rows.map(([place, recipe, rank, before, after, shift, was, is], number) => {
    const item = data.items[place];
    const { name: task, names } = data.tasks[item.task];
    const told = [item.id, task, before, after, item.right, item.text, ...item.options, ...item.tags];
    return {
      number, item, task, names, rank, before, after, shift, was, is,
      recipe: data.recipes[recipe],
      kind: data.kinds[rank],
      text: told.join("\n").toLowerCase(),
    };
  });
}

// The rows that hold every word of the search and have every chosen value.
export function matching(rows, search, chosen) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const active = FILTERS.filter((filter) => chosen[filter.name]);
  return rows.filter(
    (row) =>
      active.every((filter) => filter.values(row).includes(chosen[filter.name])) &&
      words.every((word) => row.text.includes(word)),
  );
}

export function sorted(rows, column, downwards) {
  const order = column.order ?? column.value;
  const compare = (a, b) => (typeof a === "number" ? a - b : collator.compare(a, b));
  const sign = downwards ? -1 : 1;
  return [...rows].sort((a, b) => sign * compare(order(a), order(b)) || a.number - b.number);
}

// A list to choose from, if there is more than one value. `choose` is told of the new value.
function picker(filter, rows, choose) {
  const found = new Map();
  for (const row of rows) {
    for (const value of filter.values(row)) {
      const entry = found.get(value) ?? { count: 0, order: filter.order ? filter.order(row) : 0 };
      entry.count += 1;
      found.set(value, entry);
    }
  }
  if (found.size < 2 && filter.name !== "group") return null;
  if (found.size === 0) return null;
  const entries = [...found].sort((a, b) => a[1].order - b[1].order || collator.compare(a[0], b[0]));
  const options = entries.map(([value, { count }]) =>
    element("option", { value }, `${value} (${count.toLocaleString("en")})`),
  );
  const select = element("select", { onchange: () => choose(filter.name, select.value) });
  select.append(element("option", { value: "" }, "all"), ...options);
  return element("label", {}, element("span", {}, filter.label), select);
}

function bar(share) {
  return element("span", { class: "bar", "aria-hidden": "true", style: `--share:${(100 * (share ?? 0)).toFixed(1)}%` });
}

// What both models said about one item, option by option where their probabilities are known.
function detail(row) {
  const { item } = row;
  const parts = [];
  if (item.text) parts.push(element("p", { class: "question" }, item.text));
  const head = ["answer", "original", row.recipe].map((title) => element("th", { scope: "col" }, title));
  const lines = (row.was ?? []).map((share, place) => {
    const name = row.names[place] ?? String(place + 1);
    const text = item.options[place] ? `${name}. ${item.options[place]}` : name;
    const marks = (said) => (said === name ? ["chosen", element("br")] : []);
    return element("tr", {},
      element("th", { scope: "row" }, text + (name === item.right ? RIGHT : "")),
      element("td", { "data-label": "original" }, ...marks(row.before), percent(share), bar(share)),
      element("td", { "data-label": row.recipe }, ...marks(row.after), percent(row.is[place]), bar(row.is[place])),
    );
  });
  if (!lines.length) {
    const said = element("tr", {}, element("th", { scope: "row" }, "said"),
      element("td", { "data-label": "original" }, row.before), element("td", { "data-label": row.recipe }, row.after));
    lines.push(said);
    if (item.right) parts.push(element("p", {}, `Right answer: ${item.right}`));
  }
  parts.push(element("table", { class: "pair" }, element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...lines)));
  if (item.tags.length) parts.push(element("p", { class: "small" }, item.tags.join(" · ")));
  return parts;
}

export function explore(root, data) {
  const rows = unpack(data);
  const state = { search: "", chosen: {}, column: COLUMNS[3], downwards: false, shown: FIRST };
  const columns = COLUMNS.filter(
    ({ optional, value }) => !optional || rows.some((row) => value(row) !== value(rows[0])),
  );
  let ordered = rows;

  const status = element("p", { class: "small", role: "status" });
  const body = element("tbody", { onkeydown: move });
  const more = element("button", { type: "button", class: "more", onclick: () => show(state.shown + STEP) });
  const search = element("input", { type: "search", autocomplete: "off", spellcheck: "false",
    oninput: () => { state.search = search.value; show(); } });
  const choose = (name, value) => { state.chosen[name] = value; show(); };
  const pickers = FILTERS.map((filter) => picker(filter, rows, choose)).filter(Boolean);
  const heads = columns.map((column) => {
    const button = element("button", { type: "button", onclick: () => sortBy(column) }, column.title);
    return element("th", { scope: "col" }, button);
  });

  function sortBy(column) {
    state.downwards = state.column === column && !state.downwards;
    state.column = column;
    ordered = sorted(rows, column, state.downwards);
    show();
  }

  function move(event) { // arrow keys go from item to item
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const items = [...body.querySelectorAll("button")];
    const next = items[items.indexOf(event.target) + step];
    if (!step || !next) return;
    event.preventDefault();
    next.focus();
  }

  function line(row) {
    const cells = columns.slice(1).map((column) =>
      element("td", { "data-label": column.title }, column.value(row)));
    const button = element("button", { type: "button", "aria-expanded": "false", onclick: open }, row.item.id);
    const shown = element("tr", { class: `kind-${row.rank}` }, element("th", { scope: "row" }, button), ...cells);

    function open() {
      const closed = button.getAttribute("aria-expanded") === "false";
      button.setAttribute("aria-expanded", String(closed));
      if (!closed) return shown.nextSibling.remove();
      const wide = element("td", { colspan: columns.length }, ...detail(row));
      shown.after(element("tr", { class: "detail" }, wide));
    }
    return shown;
  }

  function show(count = FIRST) {
    const found = matching(ordered, state.search, state.chosen);
    const from = count > FIRST ? state.shown : 0; // further rows are added below those that are there
    state.shown = count;
    if (!from) body.replaceChildren();
    body.append(...found.slice(from, count).map(line));
    const flips = found.filter((row) => row.rank < 2).length;
    const number = (value) => value.toLocaleString("en");
    status.textContent = `${number(found.length)} of ${number(rows.length)} answers, ${number(flips)} of them flipped`;
    more.hidden = found.length <= count;
    more.textContent = `Show ${Math.min(STEP, found.length - count)} more of ${number(found.length - count)}`;
    heads.forEach((head, place) => {
      if (columns[place] !== state.column) return head.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", state.downwards ? "descending" : "ascending");
    });
  }

  const caption = element("caption", {}, element("span", {}, data.caption));
  const table = element("table", { class: "items" }, caption,
    element("thead", {}, element("tr", {}, ...heads)), body);
  const find = element("label", { class: "find" }, element("span", {}, "Search"), search);
  const wide = element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Item by item" }, table);
  root.replaceChildren(element("div", { class: "filters", role: "search" }, find, ...pickers), status, wide, more);
  show();
}

export default {
  render({ model, el }) {
    const root = element("div", { class: "dossier" });
    const draw = () => explore(root, model.get("data"));
    el.append(root);
    model.on("change:data", draw);
    draw();
  },
};
