// A slide in OpenSeadragon: deep-zoom tiles, the heatmap as a layer of tiles above them, outlines and a scale bar over both.
/* global OpenSeadragon */

import { fetchHeat } from "./view_heat.js";

const SVG = "http://www.w3.org/2000/svg";
const HEAT = "float16";
const draw = (heat) => heat.palette.paint(document.createElement("canvas"), heat, true);

OpenSeadragon.converter.learn(HEAT, HEAT, (_, heat) => heat, 0, 1);
OpenSeadragon.converter.learn(HEAT, "context2d", (_, heat) => draw(heat), 1, 1);

const pyramid = ({ width_px, height_px, levels, tile_px }, address) => ({
  width: width_px, height: height_px, tileSize: tile_px, minLevel: 0, maxLevel: levels - 1,
  getTileUrl: (level, x, y) => `${address}/${level}/${x}/${y}`,
});

export class SlideStage {
  constructor(element, slide, address) {
    this.slide = slide;
    this.heat = null;
    this.viewer = OpenSeadragon({
      element, drawer: "canvas", tileSources: pyramid(slide, `${address}/tile`), showNavigationControl: false, showNavigator: true,
      navigatorPosition: "BOTTOM_RIGHT", navigatorAutoFade: false, gestureSettingsMouse: { clickToZoom: false }, maxZoomPixelRatio: 4, visibilityRatio: 0.5,
      animationTime: 0.4,
    });
    this.viewer.addHandler("tile-invalidated", async (event) => {
      if (event.tiledImage.source.isHeat) await event.setData(draw(await event.getData(HEAT)), "context2d");
    });
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.classList.add("outlines");
    this.outlines = this.svg.appendChild(document.createElementNS(SVG, "g"));
    this.bar = document.createElement("div");
    this.bar.className = "scale-bar";
    this.viewer.container.append(this.svg, this.bar);
    for (const event of ["open", "update-viewport", "resize"]) this.viewer.addHandler(event, () => this.#follow());
    this.opened = new Promise((resolve) => this.viewer.addOnceHandler("open", resolve));
  }

  /** Lay a heatmap over the slide instead of the one that is there; null takes it away. */
  async showHeat(geometry, address, palette, opacity) {
    await this.opened;
    if (this.heat) this.viewer.world.removeItem(this.heat);
    this.heat = null;
    if (!geometry) return;
    const source = new OpenSeadragon.TileSource(pyramid(geometry, address));
    source.isHeat = true;
    source.downloadTileStart = (job) => {
      const stop = new AbortController();
      job.userData.stop = stop;
      fetchHeat(job.src, stop.signal).then((heat) => job.finish(Object.assign(heat, { palette }), null, HEAT), (error) => job.fail(error.message, null));
    };
    source.downloadTileAbort = (job) => job.userData.stop.abort();
    const { width_px } = this.slide;
    await new Promise((resolve) => this.viewer.addTiledImage({
      tileSource: source, opacity, x: 0, y: 0, width: (geometry.width_px * geometry.pixel_px) / width_px, success: ({ item }) => { this.heat = item; resolve(); },
    }));
  }

  setOpacity(opacity) {
    this.heat?.setOpacity(opacity);
  }

  /** Colour the heatmap again. */
  repaint() {
    this.heat?.requestInvalidate();
  }

  /** Outline polygons, each a list of rings of [x, y] in pixels of the slide. */
  outline(polygons, className) {
    for (const old of this.outlines.querySelectorAll(`.${className}`)) old.remove();
    for (const rings of polygons) {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", className);
      path.setAttribute("d", rings.map((ring) => `M${ring.map((point) => point.join()).join("L")}Z`).join(""));
      this.outlines.append(path);
    }
  }

  showOutlines(shown) {
    this.svg.classList.toggle("hidden", !shown);
  }

  /** Move to a box of the slide, [left, top, width, height] in its pixels, with some of what is around it. */
  async moveTo([left, top, width, height], margin = 1) {
    await this.opened;
    const box = new OpenSeadragon.Rect(left - margin * width, top - margin * height, (1 + 2 * margin) * width, (1 + 2 * margin) * height);
    this.viewer.viewport.fitBounds(this.viewer.world.getItemAt(0).imageToViewportRectangle(box));
  }

  close() {
    this.viewer.destroy();
    this.svg.remove();
    this.bar.remove();
  }

  #follow() {
    const item = this.viewer.world.getItemAt(0);
    if (!item) return;
    const origin = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const scale = (item.imageToViewerElementCoordinates(new OpenSeadragon.Point(this.slide.width_px, 0)).x - origin.x) / this.slide.width_px;
    this.outlines.setAttribute("transform", `translate(${origin.x} ${origin.y}) scale(${scale})`);
    if (!this.slide.spacing_um) return;
    const most_um = (120 / scale) * this.slide.spacing_um; // that 120 pixels of the screen show
    const power = 10 ** Math.floor(Math.log10(most_um));
    const length_um = power * [5, 2, 1].find((step) => step * power <= most_um);
    this.bar.style.width = `${(length_um / this.slide.spacing_um) * scale}px`;
    this.bar.textContent = length_um >= 1000 ? `${length_um / 1000} mm` : `${length_um} µm`;
  }
}
