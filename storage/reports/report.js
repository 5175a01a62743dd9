"use strict";
// The controls of the maps over the slides. Without this script the first detector's map lies over each overview.
(() => {
  const controls = document.getElementById("controls");
  if (!controls) return;
  const find = (id) => document.getElementById(id);
  const slides = find("slides");
  const [layer, opacity, cut, atThreshold, borders] = ["layer", "opacity", "cut", "at-threshold", "borders"].map(find);
  const keep = document.querySelector("#cut-filter feFuncA");

  // a map's level n, 1 to 192, has the alpha n + 63 (see figures.paint_map)
  const LEVELS = 192;
  const FAINTEST = 64;
  const chosen = () => layer.options[layer.selectedIndex].dataset;
  const span = () => chosen().high - chosen().low;
  const valueOf = (level) => +chosen().low + ((level - 1) / (LEVELS - 1)) * span();
  const levelAt = (value) => Math.ceil(1 + ((value - chosen().low) / span()) * (LEVELS - 1));

  const show = () => {
    for (const part of slides.querySelectorAll("[data-layer]")) part.classList.toggle("shown", part.dataset.layer === layer.value);
    slides.style.setProperty("--heat-opacity", opacity.value / 100);
    find("opacity-shown").textContent = `${opacity.value} %`;
    slides.classList.toggle("hide-borders", !borders.checked);

    const lowest = +cut.value;
    slides.classList.toggle("cut", lowest > 1);
    find("cut-shown").textContent = lowest > 1 ? Number(valueOf(lowest).toPrecision(4)) : "show all";
    const alphas = Array.from({ length: 256 }, (_, alpha) => (alpha < lowest + FAINTEST - 1 ? 0 : alpha / 255));
    keep.setAttribute("tableValues", alphas.join(" "));
    atThreshold.disabled = chosen().threshold === undefined;
  };

  atThreshold.addEventListener("click", () => {
    cut.value = levelAt(+chosen().threshold); // the slider clamps to its ends
    show();
  });
  layer.addEventListener("change", () => { cut.value = 0; show(); });
  for (const control of [opacity, cut, borders]) control.addEventListener("input", show);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.hidden = false;
  show();
})();
