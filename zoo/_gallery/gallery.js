"use strict";
// The table of engines: sorted and filtered, with its state in the address. On a card's page: buttons that copy code.

const form = document.querySelector("#filters");
const table = document.querySelector("#engines");
const fields = ["text", "element", "status", "commercial"];
let order = { key: "", descending: false };

function symbols(text) {
  const words = text.split(/[^A-Za-z]+/).filter(Boolean);
  return words.map((word) => word[0].toUpperCase() + word.slice(1).toLowerCase());
}

function wanted(row, state) {
  const known = row.dataset.elements.split(" ");
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  const text = row.textContent.toLowerCase();
  return words.every((word) => text.includes(word))
    && symbols(state.element).every((symbol) => known.includes(symbol))
    && (!state.status || row.dataset.status === state.status)
    && (!state.commercial || row.dataset.commercial === state.commercial);
}

function compare(one, other) {
  const numbers = [Number(one), Number(other)];
  return numbers.some(Number.isNaN) ? one.localeCompare(other, "en", { numeric: true }) : numbers[0] - numbers[1];
}

function sortRows() {
  const heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex((head) => head.dataset.key === order.key);
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  if (column < 0) return;
  heads[column].setAttribute("aria-sort", order.descending ? "descending" : "ascending");
  const sign = order.descending ? -1 : 1;
  const keyed = [...table.tBodies[0].rows].map((row) => [row.cells[column].dataset.sort, row]);
  keyed.sort(([one], [other]) => {
    if (!one || !other) return Boolean(other) - Boolean(one); // what is not known comes last, either way
    return sign * compare(one, other);
  });
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}

function filterRows() {
  const state = Object.fromEntries(fields.map((name) => [name, form.elements[name].value]));
  const rows = [...table.tBodies[0].rows];
  rows.forEach((row) => { row.hidden = !wanted(row, state); });
  form.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} engines`;
}

function remember() {
  const state = new URLSearchParams();
  fields.filter((name) => form.elements[name].value).forEach((name) => state.set(name, form.elements[name].value));
  if (order.key) state.set("sort", order.key);
  if (order.key && order.descending) state.set("order", "descending");
  if (state.toString() !== location.hash.slice(1)) history.replaceState(null, "", `#${state}`);
}

function recall() {
  const state = new URLSearchParams(location.hash.slice(1));
  fields.forEach((name) => { form.elements[name].value = state.get(name) ?? ""; });
  order = { key: state.get("sort") ?? "", descending: state.get("order") === "descending" };
  sortRows();
  filterRows();
}

function addSortButton(head) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    order = { key: head.dataset.key, descending: order.key === head.dataset.key && !order.descending };
    sortRows();
    remember();
  });
}

function startTable() {
  document.body.classList.add("sortable");
  form.hidden = false;
  [...table.tHead.rows[0].cells].forEach(addSortButton);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { filterRows(); remember(); });
  form.addEventListener("reset", () => setTimeout(() => { filterRows(); remember(); }));
  addEventListener("hashchange", recall);
  recall();
}

async function copy(pre, button) {
  try {
    await navigator.clipboard.writeText(pre.textContent.trimEnd());
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(pre);
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

function addCopyButton(pre) {
  const box = document.createElement("div");
  const button = document.createElement("button");
  box.className = "code";
  button.className = "copy";
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", () => copy(pre, button));
  pre.replaceWith(box);
  box.append(pre, button);
}

if (table) startTable();
document.querySelectorAll("pre").forEach(addCopyButton);
