// The page of `normascope view`: what is shown stands in the address after #, so that a reload, a link and the back button keep it.

import { Palette, fetchHeat, format, valueAt } from "./view_heat.js";
import { SlideStage } from "./view_slide.js";

const PAGE = 50;
const THUMBNAIL_PX = 168; // twice what is shown, for dense screens
const LARGEST_PX = 1024;
const VIEWS = ["table", "slides", "row", "slide"];
const FILTERS = ["split", "dataset", "label", "status", "subject", "slide", "sample"];

const spaced = (number) => number.toLocaleString("en").replaceAll(",", " ");
const find = (id) => document.getElementById(id);
const heats = new WeakMap(); // canvas -> what it shows: heat, layer, fading
let archive, palettes, stage, turn = 0;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

async function get(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

// ---- what is shown

function read() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const number = (name, otherwise) => (/^\d+$/.test(given[name] ?? "") ? Number(given[name]) : otherwise);
  const sort = Math.min(number("sort", 0), archive.layers.length - 1);
  const layers = (given.layers ?? String(sort)).split(".").map(Number).filter((layer) => archive.layers[layer]).sort((a, b) => a - b);
  return {
    ...Object.fromEntries(FILTERS.map((name) => [name, given[name] ?? ""])),
    view: VIEWS.includes(given.view) ? given.view : "table",
    sort, layers: layers.length ? layers : [sort], lowest: given.lowest === "1",
    offset: number("offset", 0), row: number("row", null), at: number("at", null),
  };
}

function addressOf(changes) {
  const wanted = { ...read(), ...changes };
  const plain = { ...wanted, layers: wanted.layers.join("."), lowest: wanted.lowest ? "1" : "" };
  const kept = Object.entries(plain).filter(([name, value]) => value !== "" && value !== null && !(value === 0 && ["sort", "offset"].includes(name)));
  return `#${new URLSearchParams(kept)}`;
}

const go = (changes) => { location.hash = addressOf(changes); };

function tableAddress(state, offset, limit) {
  const query = new URLSearchParams({ layer: state.sort, offset, limit });
  if (state.lowest) query.set("lowest_first", "true");
  for (const name of FILTERS) if (state[name]) query.set(name, state[name]);
  return `table?${query}`;
}

async function show() {
  const mine = ++turn;
  const state = read();
  const isCurrent = () => mine === turn;
  find("trouble").hidden = true;
  showControls(state);
  for (const view of VIEWS) find(`${view}-view`).hidden = view !== state.view;
  document.body.dataset.view = state.view;
  if (stage && state.view !== "slide") { stage.close(); stage = null; }
  try {
    await { table: showTable, slides: showSlides, row: showRow, slide: showSlide }[state.view](state, isCurrent);
  } catch (error) {
    if (!isCurrent()) return;
    find("trouble").textContent = error.message;
    find("trouble").hidden = false;
  }
}

// ---- filters, colours, progress

function fillFilters() {
  const choices = { ...archive.filters, status: { scored: null, failed: null, pending: null } };
  for (const [name, values] of Object.entries(choices)) {
    const options = Object.entries(values).map(([value, rows]) => make("option", { value, textContent: rows === null ? value : `${value} (${spaced(rows)})` }));
    find("filters").elements[name].replaceChildren(make("option", { value: "", textContent: "all" }), ...options);
  }
  let waiting;
  const apply = () => go({ ...Object.fromEntries(FILTERS.map((name) => [name, find("filters").elements[name].value.trim()])), offset: 0 });
  for (const kind of ["input", "change"]) find("filters").addEventListener(kind, () => { clearTimeout(waiting); waiting = setTimeout(apply, 250); });
  find("filters").addEventListener("submit", (event) => event.preventDefault());
  find("filters").addEventListener("reset", () => setTimeout(apply));
}

function describeProgress(layer) {
  const { scored, failed, pending } = layer.counts;
  const share = Math.floor((1000 * (scored + failed)) / archive.rows) / 10;
  const rest = pending ? `, ${spaced(pending)} pending (${share} % done; reload shows more)` : "";
  return `${layer.name}: ${spaced(scored)} scored, ${spaced(failed)} failed${rest}`;
}

function makeLayer(layer, number) {
  const shown = make("input", { type: "checkbox", name: "layer", value: number });
  shown.addEventListener("change", () => {
    const layers = [...document.getElementsByName("layer")].filter((box) => box.checked).map((box) => Number(box.value));
    if (!layers.length) { shown.checked = true; return; }
    const { sort } = read();
    go({ layers, sort: layers.includes(sort) ? sort : layers[0], offset: 0 });
  });
  const element = make("div", { className: "layer" }, make("label", {}, shown, make("strong", { textContent: layer.name })));
  element.dataset.layer = number;
  if (layer.colour_range) element.append(makeLegend(layer, number));
  return element;
}

/** Colours with their numbers, the card's pixel thresholds marked, and the slider below which maps are hidden. */
function makeLegend(layer, number) {
  const [low, high] = layer.colour_range;
  const bar = make("canvas");
  palettes[number].paintBar(bar);
  const cut = make("input", { type: "range", min: 0, max: 1000, value: 0, className: "cut" });
  cut.setAttribute("aria-label", `Hide scores of ${layer.name} below`);
  const shown = make("output", { textContent: "shows all" });
  const scale = make("div", { className: "scale" }, bar, cut);
  cut.addEventListener("input", () => {
    const value = low + (cut.value / 1000) * (high - low);
    palettes[number].hideBelow(cut.value === "0" ? -Infinity : value);
    shown.textContent = cut.value === "0" ? "shows all" : `from ${format(value)}`;
    repaint();
  });
  for (const point of layer.thresholds.filter(({ level }) => level === (layer.maps ? "pixel" : "image"))) {
    const place = Math.min(1, Math.max(0, (point.value - low) / (high - low)));
    const mark = make("button", { type: "button", className: "mark", title: `${point.rule}: hide what is below ${format(point.value)}` });
    mark.style.left = `calc(${100 * place}% - 4px)`;
    mark.addEventListener("click", () => { cut.value = Math.max(1, Math.round(1000 * place)); cut.dispatchEvent(new Event("input")); });
    scale.append(mark);
  }
  return make("div", { className: "legend" }, make("span", { textContent: format(low) }), scale, make("span", { textContent: format(high) }), shown);
}

function showControls(state) {
  find("progress").textContent = state.layers.map((layer) => describeProgress(archive.layers[layer])).join(" · ");
  for (const element of find("layers").children) {
    const chosen = state.layers.includes(Number(element.dataset.layer));
    element.classList.toggle("off", !chosen);
    element.querySelector("input").checked = chosen;
  }
  for (const name of FILTERS) {
    const field = find("filters").elements[name];
    if (document.activeElement !== field) field.value = state[name];
  }
  find("to-table").href = addressOf({ view: "table", row: null, at: null });
  find("to-slides").href = addressOf({ view: "slides", row: null, at: null });
  for (const view of ["table", "slides"]) find(`to-${view}`).toggleAttribute("aria-current", state.view === view);
}

function repaint() {
  for (const canvas of document.querySelectorAll("canvas.heat")) paint(canvas);
  stage?.repaint();
}

function paint(canvas) {
  const known = heats.get(canvas);
  if (known) palettes[known.layer].paint(canvas, known.heat, known.fading);
}

function setOpacity() {
  const share = find("opacity").value / 100;
  document.documentElement.style.setProperty("--opacity", share);
  find("opacity-shown").textContent = `${find("opacity").value} %`;
  stage?.setOpacity(share);
}

// ---- pictures and maps

/** A sample's picture, and over it a layer's map where there is one; `layer` null shows the picture alone. */
function makeStack(sample, layer, size) {
  const picture = make("img", { alt: `sample ${sample.sample_id}`, loading: "lazy", decoding: "async" });
  const stack = make("div", { className: "stack" }, picture);
  picture.addEventListener("error", () => picture.replaceWith(make("div", { className: "missing", textContent: "cannot be read" })));
  picture.src = `picture/${sample.row}?size=${size}`;
  if (layer !== null && archive.layers[layer].maps && sample.scores[layer].status === "scored") {
    const canvas = make("canvas", { className: "heat" });
    stack.append(canvas);
    fetchHeat(`map/${layer}/${sample.row}?size=${size}`).then((heat) => {
      heats.set(canvas, { heat, layer, fading: true });
      paint(canvas);
    }, () => canvas.remove());
  }
  return stack;
}

const imageThreshold = (layer) => archive.layers[layer].thresholds.find(({ level }) => level === "image");

function makeScore(sample, layer) {
  const { status, score, p, reason } = sample.scores[layer];
  if (status !== "scored") return make("span", { className: status }, status, reason && make("span", { className: "faint reason", textContent: reason }));
  const threshold = imageThreshold(layer);
  const over = threshold && score >= threshold.value;
  const text = make("span", { className: `score ${over ? "over" : ""}`, textContent: `${over ? "▲ " : ""}${format(score)}` });
  if (threshold) text.title = `${over ? "at or above" : "below"} ${format(threshold.value)}, ${threshold.rule}`;
  if (p !== null) text.append(make("span", { className: "faint", textContent: `p ${p < 1e-4 ? p.toExponential(1) : format(p)}` }));
  return text;
}

// ---- the table

const cell = (text, className = "") => make("td", { className, textContent: text ?? "–" });

function makeHead(state) {
  const heads = state.layers.map((layer) => {
    const sorted = layer === state.sort;
    const button = make("button", { textContent: `${archive.layers[layer].name} ${sorted ? (state.lowest ? "▲" : "▼") : ""}` });
    button.addEventListener("click", () => go({ sort: layer, lowest: sorted && !state.lowest, offset: 0 }));
    const head = make("th", { scope: "col" }, button);
    if (sorted) head.setAttribute("aria-sort", state.lowest ? "ascending" : "descending");
    return head;
  });
  const names = ["Label", "Finding", "Split", "Data set", "Subject", ...(archive.slides ? ["Slide"] : []), "Sample id"];
  return make("tr", {}, make("th", { scope: "col", className: "number", textContent: "#" }), ...heads, ...names.map((textContent) => make("th", { scope: "col", textContent })));
}

function makeRow(sample, at, state) {
  const scores = state.layers.map((layer) => make("td", {}, make("div", { className: "scored-cell" }, makeStack(sample, layer, THUMBNAIL_PX), makeScore(sample, layer))));
  const row = make("tr", { tabIndex: 0 },
    cell(at + 1, "number"), ...scores, cell(sample.label, sample.label), cell(sample.finding), cell(sample.split), cell(sample.dataset),
    cell(sample.subject_id, "id"), ...(archive.slides ? [cell(sample.slide_id, "id")] : []), cell(sample.sample_id, "id"));
  row.dataset.row = sample.row;
  row.dataset.at = at;
  return row;
}

async function showTable(state, isCurrent) {
  const { matching, rows } = await get(tableAddress(state, state.offset, PAGE));
  if (!isCurrent()) return;
  const from = document.activeElement?.closest?.("tbody tr")?.dataset.at;
  find("samples").tHead.replaceChildren(makeHead(state));
  find("samples").tBodies[0].replaceChildren(...rows.map((sample, place) => makeRow(sample, state.offset + place, state)));
  find("empty").hidden = matching > 0;
  find("page-shown").textContent = matching ? `${spaced(state.offset + 1)}–${spaced(state.offset + rows.length)} of ${spaced(matching)}` : "0";
  const last = Math.max(0, Math.floor((matching - 1) / PAGE) * PAGE);
  const targets = { first: 0, previous: state.offset - PAGE, next: state.offset + PAGE, last };
  for (const [id, offset] of Object.entries(targets)) {
    find(id).disabled = offset < 0 || offset > last || offset === state.offset;
    find(id).onclick = () => go({ offset });
  }
  const focused = state.at ?? from;
  if (focused !== undefined && focused !== null) find("samples").querySelector(`tr[data-at="${focused}"]`)?.focus();
}

async function showSlides(state, isCurrent) {
  const { slides, highest } = await get(`slides?layer=${state.sort}`);
  if (!isCurrent()) return;
  find("slides-shown").textContent = highest.length < slides ? `The ${highest.length} highest of ${spaced(slides)} slides; others are found by the filter of the samples.` : "";
  const heads = ["Slide", `Highest score, ${archive.layers[state.sort].name}`, "Samples", "Scored", "Data set"];
  find("slides").tHead.replaceChildren(make("tr", {}, ...heads.map((textContent) => make("th", { scope: "col", textContent }))));
  find("slides").tBodies[0].replaceChildren(...highest.map((slide) => {
    const row = make("tr", { tabIndex: 0 }, cell(slide.slide_id, "id"), cell(format(slide.score), "score"), cell(slide.samples), cell(slide.scored), cell(slide.dataset));
    row.dataset.slide = slide.row;
    return row;
  }));
}

// ---- one sample

async function showRow(state, isCurrent) {
  const sample = await get(`row/${state.row}`);
  if (!isCurrent()) return;
  const { width_px, height_px } = sample.manifest;
  const size = Math.min(LARGEST_PX, Math.max(16, width_px, height_px));
  const figures = [null, ...state.layers].map((layer) => makeFigure(sample, layer, size));
  find("row-title").textContent = `${sample.subject_id} · ${sample.sample_id}`;
  find("row-figures").replaceChildren(...figures);
  const facts = Object.entries(sample.manifest).filter(([, value]) => value !== null);
  find("row-facts").replaceChildren(make("dl", {}, ...facts.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: String(value) })))));
  find("row-slide").hidden = sample.slide_id === null || sample.manifest.frame !== null;
  find("row-slide").onclick = () => go({ view: "slide" });
  const step = async (by) => {
    const at = state.at + by;
    const { rows } = await get(tableAddress(state, at, 1));
    if (rows.length) go({ at, row: rows[0].row, offset: Math.floor(at / PAGE) * PAGE });
  };
  find("row-previous").disabled = !state.at;
  find("row-next").disabled = state.at === null;
  find("row-previous").onclick = () => step(-1);
  find("row-next").onclick = () => step(1);
}

function makeFigure(sample, layer, size) {
  const { width_px, height_px } = sample.manifest;
  const stack = makeStack(sample, layer, size);
  if (width_px && height_px) stack.style.aspectRatio = `${width_px} / ${height_px}`;
  else stack.style.aspectRatio = "1";
  stack.classList.toggle("pixelated", Math.max(width_px, height_px) <= 64);
  if (layer === null) return make("figure", {}, stack, make("figcaption", { textContent: `picture, ${width_px} × ${height_px} px` }));
  const { name, p_values } = archive.layers[layer];
  const under = make("span");
  const p = sample.scores[layer].p === null ? null : make("span", { textContent: ` (${p_values} distribution of normal scores)` });
  const caption = make("figcaption", {}, make("strong", { textContent: `${name}: ` }), makeScore(sample, layer), p, make("br"), under);
  stack.addEventListener("pointermove", (event) => {
    const canvas = stack.querySelector("canvas"), known = canvas && heats.get(canvas);
    if (!known) return;
    const box = canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((share, axis) => Math.min(0.9999, Math.max(0, share)) * (axis ? canvas.height : canvas.width) | 0);
    under.textContent = `here: ${format(valueAt(known.heat, x, y))}`;
  });
  return make("figure", {}, stack, caption);
}

// ---- one slide

async function showSlide(state, isCurrent) {
  const address = `slide/${state.row}`;
  const slide = await get(address);
  if (!isCurrent()) return;
  stage?.close();
  stage = new SlideStage(find("slide-stage"), slide, address);
  const spacing = slide.spacing_um ? `, ${format(slide.spacing_um)} µm a pixel` : "";
  find("slide-title").textContent = slide.slide_id;
  find("slide-says").textContent = `${slide.width_px} × ${slide.height_px} px${spacing}; ${slide.samples} samples.`;
  find("heat-layer").replaceChildren(...archive.layers.map(({ name }, value) => make("option", { value, textContent: name })));
  find("heat-layer").value = state.sort;
  find("heat-layer").onchange = () => showHeat(Number(find("heat-layer").value));
  find("outlines").onchange = () => stage.showOutlines(find("outlines").checked);
  find("zoom-in").onclick = () => stage.viewer.viewport.zoomBy(1.6);
  find("zoom-out").onclick = () => stage.viewer.viewport.zoomBy(1 / 1.6);
  find("zoom-home").onclick = () => stage.viewer.viewport.goHome();
  if (slide.box) stage.outline([boxRing(slide.box)], "sample");
  if (state.at !== null) stage.moveTo(slide.box, 4);
  find("slide-stage").focus();
  await showHeat(state.sort);

  async function showHeat(layer) {
    showControls({ ...state, layers: [layer] });
    const { heat, regions } = await get(`${address}/layer/${layer}`);
    if (!isCurrent()) return;
    find("heat-shows").textContent = `Above it: ${heat.shows}.`;
    await stage.showHeat(palettes[layer] && heat, `${address}/heat/${layer}`, palettes[layer], find("opacity").value / 100);
    stage.outline(regions.map(({ rings }) => rings), "region");
    find("regions").replaceChildren(...regions.map((region) => {
      const jump = make("button", { textContent: describeRegion(region) });
      jump.addEventListener("click", () => { stage.outline([region.rings], "chosen"); stage.moveTo(region.box); });
      return make("li", {}, jump);
    }));
  }
}

const boxRing = ([left, top, width, height]) => [[[left, top], [left + width, top], [left + width, top + height], [left, top + height]]];

const describeRegion = ({ name, area_mm2, mean_score, max_score }) =>
  `${name}: ${format(area_mm2)} mm²${mean_score === null ? "" : `, mean ${format(mean_score)}, highest ${format(max_score)}`}`;

// ---- keys and clicks

function open(row) {
  if (row?.dataset.row) go({ view: "row", row: Number(row.dataset.row), at: Number(row.dataset.at) });
  if (row?.dataset.slide) go({ view: "slide", row: Number(row.dataset.slide), at: null });
}

function back() {
  const { view, at } = read();
  if (view === "slide" && at !== null) go({ view: "row" });
  else if (view === "slide") go({ view: "slides", row: null });
  else if (view === "row") go({ view: "table", row: null });
}

function handleKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") { document.activeElement?.blur?.(); back(); return; }
  if (event.target.closest("input, select, button, a, #slide-stage")) return;
  const { view } = read();
  const row = event.target.closest("tbody tr");
  const rows = [...document.querySelectorAll(`#${view}-view tbody tr`)];
  const keys = {
    ArrowDown: () => (row ? row.nextElementSibling : rows[0])?.focus(),
    ArrowUp: () => (row ? row.previousElementSibling : rows.at(-1))?.focus(),
    Enter: () => open(row),
    PageDown: () => view === "table" && find("next").click(),
    PageUp: () => view === "table" && find("previous").click(),
    ArrowRight: () => view === "row" && find("row-next").click(),
    ArrowLeft: () => view === "row" && find("row-previous").click(),
  };
  if (view === "row" && event.key.startsWith("Arrow") && !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
}

async function start() {
  archive = await get("archive");
  palettes = archive.layers.map((layer) => (layer.colour_range ? new Palette(archive.colours, layer.colour_range) : null));
  find("layers").replaceChildren(...archive.layers.map(makeLayer));
  find("to-slides").hidden = !archive.slides;
  fillFilters();
  setOpacity();
  find("opacity").addEventListener("input", setOpacity);
  for (const button of document.querySelectorAll(".back")) button.addEventListener("click", back);
  for (const id of ["samples", "slides"]) find(id).tBodies[0].addEventListener("click", (event) => open(event.target.closest("tr")));
  document.addEventListener("keydown", handleKey);
  window.addEventListener("hashchange", show);
  await show();
}

start().catch((error) => {
  find("trouble").textContent = error.message;
  find("trouble").hidden = false;
});
