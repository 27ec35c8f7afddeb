// Slices side by side with maps over them. Everything moves here, in the browser; the script runs again only when a
// page asked to hear about the slice slider. Header and arrays arrive as one block of bytes, see encode() in Python.

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array, float32: Float32Array };
const remembered = new Map(); // reader's settings by key: they outlive a script run
const instances = new WeakMap();

export default function (component) {
  const { data, parentElement, setStateValue } = component;
  let view = instances.get(parentElement);
  if (!view) {
    view = new CanvasView(parentElement.querySelector(".canvas-root"), setStateValue);
    instances.set(parentElement, view);
  }
  view.setStateValue = setStateValue;
  view.load(data);
  return () => {
    view.destroy();
    instances.delete(parentElement);
  };
}

class CanvasView {
  constructor(root, setStateValue) {
    this.root = root;
    this.setStateValue = setStateValue;
    this.observer = new ResizeObserver(() => this.resize());
  }

  load(bytes) {
    const raw = bytes instanceof Uint8Array ? bytes : new Uint8Array(bytes);
    // A copy starts at offset 0, so that typed arrays of 2 and 4 bytes lie aligned.
    const buffer = raw.slice().buffer;
    const length = new DataView(buffer).getUint32(0, true);
    this.header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    const start = 4 + length;
    const read = (Type, offset, count) => new Type(buffer, start + offset, count);
    const optional = (offset, count) => (offset === null ? null : read(Uint8Array, offset, count));
    this.tables = {};
    for (const [name, offset] of Object.entries(this.header.colour_maps)) {
      this.tables[name] = read(Uint8Array, offset, 768);
    }
    this.panels = this.header.panels.map((panel) => {
      const [n, h, w] = panel.shape;
      const [rows, columns] = panel.size; // of the image; a large one's arrays come with fewer, h and w
      const count = n * h * w;
      return {
        ...panel, n, h, w, rows, columns,
        image: read(TYPES[panel.dtype], panel.image, count),
        saliency: optional(panel.saliency, count),
        mask: optional(panel.mask, count),
        brain: optional(panel.brain, count),
        contours: new Map(),
        dirtyImage: true,
        dirtyMap: true,
      };
    });
    const mounted = this.s !== undefined;
    this.count = Math.max(...this.panels.map((p) => p.n));
    const first = this.panels[0];
    const initial = this.header.settings;
    const [centre, width] = initial.window || first.window;
    const fresh = {
      opacity: initial.opacity, threshold: initial.threshold, colourMap: initial.colour_map, style: initial.style,
      outline: true, peak: true, size: "fit", brainOnly: false, centre, width, slice: initial.slice,
      scale: 1, x: 0.5, y: 0.5, identity: this.header.identity,
    };
    // Another picture under the same key: keep how the reader likes maps drawn, forget where they had zoomed to.
    const old = remembered.get(this.header.key);
    this.s = old && old.identity === fresh.identity ? old
      : old ? { ...fresh, opacity: old.opacity, threshold: old.threshold, colourMap: old.colourMap, style: old.style,
                outline: old.outline, peak: old.peak, size: old.size, brainOnly: old.brainOnly }
      : fresh;
    // A page that hears of the slice has moved on while the canvas was away; while it stands, the reader is ahead.
    if (!mounted && this.header.report_slice) this.s.slice = initial.slice;
    this.s.slice = Math.min(Math.max(this.s.slice, 0), this.count - 1);
    remembered.set(this.header.key, this.s);
    this.home = { centre, width };
    this.probe = null;
    this.build();
    this.resize();
  }

  destroy() {
    this.observer.disconnect();
    cancelAnimationFrame(this.pending);
  }

  // ---- page elements -------------------------------------------------------------------------------------------

  build() {
    const focused = this.root.getRootNode().activeElement?.dataset?.name;
    this.observer.disconnect();
    this.root.replaceChildren(this.buildToolbar());
    const grid = element("div", { className: "panels" });
    this.panels.forEach((panel, index) => grid.append(this.buildPanel(panel, index)));
    this.root.append(grid);
    const scroll = this.count > 1 ? "wheel: slice, Ctrl + wheel: zoom" : "wheel or pinch: zoom";
    this.root.append(element("div", {
      className: "help",
      textContent: `point, tap or press a key: values · ${scroll} · drag: move · Shift + drag: window and level · ` +
        "double click: reset · keys: + − 0, arrows" + (this.count > 1 ? " (slices; when zoomed: move), Page Up / Page Down" : ""),
    }));
    this.sizePanels();
    this.observer.observe(this.root);
    if (focused) this.root.querySelector(`[data-name="${focused}"]`)?.focus();
  }

  buildToolbar() {
    const bar = element("div", { className: "toolbar" });
    const maps = this.panels.some((p) => p.saliency);
    const both = () => this.invalidate(true, true);
    if (this.count > 1) {
      const label = this.range("Slice", "slice", 0, this.count - 1, 1, (v) => {
        this.setSlice(v, false);
      }, (v) => `${v + 1} / ${this.count}`);
      label.className = "slice";
      label.querySelector("input").addEventListener("change", () => this.report());
      bar.append(label);
    }
    if (maps) {
      const mapOnly = () => this.invalidate(false, true);
      bar.append(
        this.range("Opacity", "opacity", 0, 1, 0.01, mapOnly),
        this.range("Threshold", "threshold", 0, 1, 0.01, mapOnly),
        this.select("Colours", "colourMap", Object.keys(this.tables), both),
        this.select("Draw as", "style", ["fill", "contour"], both),
        this.checkbox("Peak", "peak", () => this.draw()),
      );
    }
    if (this.panels.some((p) => p.mask)) bar.append(this.checkbox("True outline", "outline", () => this.draw()));
    if (maps && this.panels.some((p) => p.brain)) bar.append(this.checkbox("Brain only", "brainOnly", () => this.invalidate(false, true)));
    bar.append(this.select("Pictures", "size", ["fit", "large"], () => {
      this.sizePanels();
      this.resize();
    }));
    const [low, high] = this.panels[0].range;
    const span = Math.max(high - low, 1e-6);
    const step = this.panels[0].dtype === "float32" ? span / 500 : 1;
    const digits = (v) => format(v, span);
    const imageOnly = () => this.invalidate(true, false);
    bar.append(
      this.range("Level", "centre", low, high, step, imageOnly, digits),
      this.range("Window", "width", step, span * 1.5, step, imageOnly, digits),
      this.button("Reset view", "reset", () => this.reset()),
      this.button("Save view (PNG)", "save", () => this.save()),
    );
    return bar;
  }

  range(text, name, min, max, step, change, show = (v) => v.toFixed(2)) {
    const label = element("label", { textContent: text });
    const input = element("input", { type: "range", min, max, step });
    const output = element("output", { textContent: show(this.s[name]) });
    input.value = this.s[name];
    input.dataset.name = name;
    input.ariaLabel = text;
    input.addEventListener("input", () => {
      const value = Number(input.value);
      this.s[name] = value;
      output.textContent = show(value);
      change(value);
    });
    label.refresh = () => {
      input.value = this.s[name];
      output.textContent = show(this.s[name]);
    };
    label.append(input, output);
    return label;
  }

  select(text, name, options, change) {
    const label = element("label", { textContent: text });
    const input = element("select");
    input.dataset.name = name;
    for (const option of options) input.append(element("option", { value: option, textContent: option }));
    input.value = this.s[name];
    input.addEventListener("change", () => {
      this.s[name] = input.value;
      change();
    });
    label.append(input);
    return label;
  }

  checkbox(text, name, change) {
    const label = element("label");
    const input = element("input", { type: "checkbox", checked: this.s[name] });
    input.dataset.name = name;
    input.addEventListener("change", () => {
      this.s[name] = input.checked;
      change();
    });
    label.append(input, text);
    return label;
  }

  button(text, name, action) {
    const node = element("button", { type: "button", textContent: text });
    node.dataset.name = name;
    node.addEventListener("click", action);
    return node;
  }

  // "large" gives up the single row for pictures twice as wide, as high as the window allows.
  sizePanels() {
    const large = this.s.size === "large";
    const height = large ? Math.max(this.header.max_height, 0.85 * window.innerHeight) : this.header.max_height;
    this.root.querySelector(".panels").style.setProperty("--least", large ? "340px" : "165px");
    this.root.querySelectorAll(".panel").forEach((box, index) => {
      box.style.maxWidth = `${Math.round(height / Math.min(Math.max(this.aspect(this.panels[index]), 0.4), 1.6))}px`;
    });
  }

  buildPanel(panel, index) {
    const box = element("div", { className: "panel" });
    if (panel.title) box.append(element("h4", { textContent: panel.title }));
    const canvas = element("canvas", { className: "view", tabIndex: 0 });
    canvas.dataset.name = `view${index}`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", [panel.title || `Picture ${index + 1}`, panel.badge, panel.caption].filter(Boolean).join(". "));
    panel.canvas = canvas;
    panel.off = element("canvas", { width: panel.w, height: panel.h });
    panel.over = element("canvas", { width: panel.w, height: panel.h });
    box.append(canvas);
    if (panel.saliency) {
      panel.bar = element("canvas", { width: 256, height: 10 });
      const bar = element("div", { className: "bar" });
      bar.append(element("span", { textContent: "0" }), panel.bar, element("span", { textContent: "1" }),
        element("span", { className: "units", textContent: panel.units }));
      box.append(bar);
    }
    panel.readout = element("div", { className: "probe" });
    panel.readout.setAttribute("aria-live", "off");
    box.append(panel.readout);
    if (panel.caption) box.append(element("div", { className: "caption", textContent: panel.caption }));
    this.listen(panel);
    return box;
  }

  // ---- pointer and keys ----------------------------------------------------------------------------------------

  listen(panel) {
    const canvas = panel.canvas;
    const pointers = new Map();
    let tap = null; // where a finger or button went down, until it moves
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (this.count > 1 && !event.ctrlKey) this.setSlice(this.s.slice + Math.sign(event.deltaY));
      else this.zoom(panel, event, Math.exp(-event.deltaY * 0.0015));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      tap = pointers.size === 1 ? { x: event.clientX, y: event.clientY } : null;
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) {
        this.probe = this.locate(panel, event);
        this.draw();
        return;
      }
      if (tap && Math.hypot(event.clientX - tap.x, event.clientY - tap.y) > 6) tap = null;
      if (pointers.size === 2) {
        const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
        const was = Math.hypot(before.x - other.x, before.y - other.y);
        const is = Math.hypot(event.clientX - other.x, event.clientY - other.y);
        if (was > 0) this.zoom(panel, event, is / was);
      } else if (event.shiftKey) {
        const span = panel.range[1] - panel.range[0];
        this.s.width = clamp(this.s.width + ((event.clientX - before.x) / 300) * span, span / 500, span * 1.5);
        this.s.centre = clamp(this.s.centre - ((event.clientY - before.y) / 300) * span, ...panel.range);
        this.refreshToolbar();
        this.invalidate(true, false);
      } else {
        const fit = this.fit(panel);
        this.s.x = clamp(this.s.x - ((event.clientX - before.x) * fit.ratio) / fit.width, 0, 1);
        this.s.y = clamp(this.s.y - ((event.clientY - before.y) * fit.ratio) / fit.height, 0, 1);
        this.draw();
      }
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => {
        pointers.delete(event.pointerId);
        if (tap && name === "pointerup") {
          this.probe = this.locate(panel, event);
          this.draw();
        }
        tap = null;
      });
    }
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "touch") return; // comes with every finger lifted: what was tapped stays to be read
      this.probe = null;
      this.draw();
    });
    canvas.addEventListener("dblclick", () => this.reset());
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (move && this.count > 1 && this.s.scale === 1) this.setSlice(this.s.slice + move[0] + move[1]);
      else if (move) {
        this.s.x = clamp(this.s.x + (move[0] * 0.08) / this.s.scale, 0, 1);
        this.s.y = clamp(this.s.y + (move[1] * 0.08) / this.s.scale, 0, 1);
      } else if (event.key === "+" || event.key === "=") this.s.scale = clamp(this.s.scale * 1.25, 1, 40);
      else if (event.key === "-") this.s.scale = clamp(this.s.scale / 1.25, 1, 40);
      else if (event.key === "0") this.reset();
      else if (event.key === "PageUp") this.setSlice(this.s.slice - 1);
      else if (event.key === "PageDown") this.setSlice(this.s.slice + 1);
      else return;
      event.preventDefault();
      this.probe = { x: this.s.x, y: this.s.y }; // no pointer: what is in the middle
      this.draw();
    });
  }

  setSlice(index, tell = true) {
    this.s.slice = clamp(Math.round(index), 0, this.count - 1);
    this.refreshToolbar();
    this.invalidate(true, true);
    if (tell) this.report();
  }

  report() {
    if (!this.header.report_slice) return;
    clearTimeout(this.reporting); // one script run after the wheel has come to rest
    this.reporting = setTimeout(() => this.setStateValue("slice", this.s.slice), 250);
  }

  zoom(panel, event, factor) {
    const before = this.locate(panel, event, false);
    this.s.scale = clamp(this.s.scale * factor, 1, 40);
    const after = this.locate(panel, event, false);
    this.s.x = clamp(this.s.x + before.x - after.x, 0, 1);
    this.s.y = clamp(this.s.y + before.y - after.y, 0, 1);
    this.draw();
  }

  reset() {
    Object.assign(this.s, { scale: 1, x: 0.5, y: 0.5, centre: this.home.centre, width: this.home.width });
    this.refreshToolbar();
    this.invalidate(true, false);
  }

  refreshToolbar() {
    for (const label of this.root.querySelectorAll(".toolbar label")) label.refresh?.();
  }

  // Where the pointer is, as a fraction of the picture; null outside it.
  locate(panel, event, inside = true) {
    const box = panel.canvas.getBoundingClientRect();
    const fit = this.fit(panel);
    const x = this.s.x + ((event.clientX - box.left - box.width / 2) * fit.ratio) / fit.width;
    const y = this.s.y + ((event.clientY - box.top - box.height / 2) * fit.ratio) / fit.height;
    return inside && (x < 0 || y < 0 || x >= 1 || y >= 1) ? null : { x, y };
  }

  // ---- drawing -------------------------------------------------------------------------------------------------

  aspect(panel) {
    const [row, column] = panel.spacing_mm || [1, 1];
    return (panel.rows * row) / (panel.columns * column);
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    for (const panel of this.panels) {
      const width = panel.canvas.clientWidth;
      if (!width) continue;
      const height = Math.round(Math.min(width * Math.min(Math.max(this.aspect(panel), 0.4), 1.6), this.header.max_height));
      panel.canvas.style.height = `${height}px`;
      panel.canvas.width = Math.round(width * ratio);
      panel.canvas.height = Math.round(height * ratio);
    }
    this.draw();
  }

  // Size of the whole picture in canvas pixels at the present zoom.
  fit(panel) {
    const { width: W, height: H } = panel.canvas;
    const aspect = this.aspect(panel);
    const width = Math.min(W, H / aspect) * this.s.scale;
    return { width, height: width * aspect, ratio: W / (panel.canvas.clientWidth || W) };
  }

  invalidate(image, map) {
    for (const panel of this.panels) {
      panel.dirtyImage ||= image;
      panel.dirtyMap ||= map;
    }
    this.draw();
  }

  draw() {
    cancelAnimationFrame(this.pending);
    this.pending = requestAnimationFrame(() => {
      for (const panel of this.panels) this.drawPanel(panel);
      this.root.dataset.drawn = String(Number(this.root.dataset.drawn || 0) + 1);
    });
  }

  slice(panel, array) {
    const size = panel.h * panel.w;
    const index = Math.min(this.s.slice, panel.n - 1);
    return array.subarray(index * size, (index + 1) * size);
  }

  drawPanel(panel) {
    const { canvas, w, h } = panel;
    if (!canvas.width || !canvas.height) return;
    if (panel.dirtyImage) this.paintImage(panel);
    if (panel.dirtyMap && panel.saliency) this.paintMap(panel);
    panel.dirtyImage = panel.dirtyMap = false;
    canvas.style.touchAction = this.s.scale > 1 ? "none" : "pan-y"; // one finger scrolls the page until zoomed in
    const ctx = canvas.getContext("2d");
    const fit = this.fit(panel);
    const left = canvas.width / 2 - this.s.x * fit.width;
    const top = canvas.height / 2 - this.s.y * fit.height;
    const sx = fit.width / w;
    const sy = fit.height / h;
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.fillStyle = "#000";
    ctx.fillRect(0, 0, canvas.width, canvas.height);
    ctx.setTransform(sx, 0, 0, sy, left, top);
    ctx.imageSmoothingEnabled = sx < 6; // far in, a reader wants to see the pixels
    ctx.imageSmoothingQuality = "high";
    ctx.drawImage(panel.off, 0, 0);
    if (panel.saliency) {
      if (this.s.style === "fill") ctx.drawImage(panel.over, 0, 0);
      else this.strokeMap(ctx, panel, fit, sx);
    }
    if (panel.frame) {
      const [y, x, tall, wide] = panel.frame.map((v, i) => v * (i % 2 ? w / panel.columns : h / panel.rows));
      const line = (1.2 * fit.ratio) / sx;
      const [x0, y0] = [Math.max(x, line / 2), Math.max(y, line / 2)]; // along the image's edge where it lies outside
      ctx.lineWidth = line;
      ctx.strokeStyle = "#3fb6c1";
      ctx.strokeRect(x0, y0, Math.min(x + wide, w - line / 2) - x0, Math.min(y + tall, h - line / 2) - y0);
    }
    if (panel.mask && this.s.outline) {
      const path = this.contour(panel, "mask", this.slice(panel, panel.mask), 0.5);
      ctx.lineWidth = (2.6 * fit.ratio) / sx;
      ctx.strokeStyle = "#000";
      ctx.stroke(path);
      ctx.lineWidth = (1.4 * fit.ratio) / sx;
      ctx.strokeStyle = "#fff";
      ctx.stroke(path);
    }
    ctx.setTransform(fit.ratio, 0, 0, fit.ratio, 0, 0);
    this.drawMarks(ctx, panel, fit, left / fit.ratio, top / fit.ratio, canvas.width / fit.ratio, canvas.height / fit.ratio);
    this.readProbe(panel);
  }

  paintImage(panel) {
    const low = this.s.centre - this.s.width / 2;
    const gain = 255 / Math.max(this.s.width, 1e-9);
    const source = this.slice(panel, panel.image);
    const ctx = panel.off.getContext("2d");
    const picture = ctx.createImageData(panel.w, panel.h);
    const pixels = new Uint32Array(picture.data.buffer);
    for (let i = 0; i < source.length; i++) {
      const v = clamp(Math.round((source[i] - low) * gain), 0, 255);
      pixels[i] = 0xff000000 | (v << 16) | (v << 8) | v;
    }
    ctx.putImageData(picture, 0, 0);
  }

  visible(panel) {
    const values = this.slice(panel, panel.saliency);
    if (!this.s.brainOnly || !panel.brain) return values;
    const brain = this.slice(panel, panel.brain);
    return values.map((v, i) => (brain[i] ? v : 0));
  }

  paintMap(panel) {
    panel.contours.clear();
    const values = this.visible(panel);
    const table = this.tables[this.s.colourMap];
    const ctx = panel.over.getContext("2d");
    const picture = ctx.createImageData(panel.w, panel.h);
    const alpha = Math.round(this.s.opacity * 255);
    const cut = Math.max(1, Math.ceil(this.s.threshold * 255 - 1e-6));
    let top = 0;
    let highest = -1;
    for (let i = 0; i < values.length; i++) {
      const v = values[i];
      if (v > top) [top, highest] = [v, i];
      if (v < cut) continue;
      picture.data.set([table[3 * v], table[3 * v + 1], table[3 * v + 2], alpha], 4 * i);
    }
    // Where the map shown peaks, as a fraction of the picture; nowhere if it is all zero. In 8 bits many pixels tie.
    if (panel.peak && !(this.s.brainOnly && panel.brain)) {
      panel.highest = { x: (panel.peak[1] + 0.5) / panel.columns, y: (panel.peak[0] + 0.5) / panel.rows };
    } else if (highest >= 0) {
      panel.highest = { x: ((highest % panel.w) + 0.5) / panel.w, y: (Math.floor(highest / panel.w) + 0.5) / panel.h };
    } else panel.highest = null;
    ctx.putImageData(picture, 0, 0);
    this.paintBar(panel, table, cut);
  }

  paintBar(panel, table, cut) {
    const ctx = panel.bar.getContext("2d");
    const picture = ctx.createImageData(256, 10);
    for (let y = 0; y < 10; y++) {
      for (let v = 0; v < 256; v++) {
        // What the threshold hides is hatched, in a grey to be seen on a light and on a dark page.
        const hatch = v < cut && (v + y) % 6 < 2;
        const colour = hatch ? [138, 148, 154] : [table[3 * v], table[3 * v + 1], table[3 * v + 2]];
        picture.data.set([...colour, v >= cut || hatch ? 255 : 60], 4 * (y * 256 + v));
      }
    }
    ctx.putImageData(picture, 0, 0);
    if (this.s.style !== "contour") return;
    for (const level of this.levels()) {
      ctx.fillStyle = "#fff";
      ctx.fillRect(level * 255 - 2, 0, 5, 10);
      ctx.fillStyle = "#000";
      ctx.fillRect(level * 255 - 1, 0, 3, 10);
    }
  }

  strokeMap(ctx, panel, fit, sx) {
    const values = this.visible(panel);
    const table = this.tables[this.s.colourMap];
    ctx.globalAlpha = this.s.opacity;
    for (const level of this.levels()) {
      const path = this.contour(panel, `level${level}`, values, level * 255);
      const c = 3 * Math.round(level * 255);
      const [r, g, b] = [table[c], table[c + 1], table[c + 2]];
      // A rim of the opposite lightness: dark lines would drown in dark tissue, light ones in bright tissue.
      ctx.lineWidth = (3.4 * fit.ratio) / sx;
      ctx.strokeStyle = 0.3 * r + 0.6 * g + 0.1 * b < 100 ? "rgba(255,255,255,0.75)" : "rgba(0,0,0,0.75)";
      ctx.stroke(path);
      ctx.lineWidth = (1.8 * fit.ratio) / sx;
      ctx.strokeStyle = `rgb(${r},${g},${b})`;
      ctx.stroke(path);
    }
    ctx.globalAlpha = 1;
  }

  // Values that contours are drawn at; the colour bar marks them.
  levels() {
    const first = Math.max(this.s.threshold, 0.05);
    return [0, 0.25, 0.5, 0.75].map((part) => first + (1 - first) * part);
  }

  contour(panel, name, values, level) {
    const slot = `${name}@${this.s.slice}`;
    if (!panel.contours.has(slot)) panel.contours.set(slot, marchingSquares(values, panel.w, panel.h, level));
    return panel.contours.get(slot);
  }

  drawMarks(ctx, panel, fit, left, top, width, height) {
    const text = (words, x, y, align, baseline) => {
      ctx.textAlign = align;
      ctx.textBaseline = baseline;
      ctx.lineWidth = 3;
      ctx.strokeStyle = "rgba(0,0,0,0.85)";
      ctx.strokeText(words, x, y);
      ctx.fillStyle = "#fff";
      ctx.fillText(words, x, y);
    };
    ctx.lineJoin = "round";
    ctx.font = "600 13px sans-serif";
    if (this.s.peak && panel.highest) {
      const x = left + panel.highest.x * (fit.width / fit.ratio);
      const y = top + panel.highest.y * (fit.height / fit.ratio);
      for (const [colour, thick] of [["rgba(0,0,0,0.85)", 3.5], ["#fff", 1.5]]) {
        ctx.strokeStyle = colour;
        ctx.lineWidth = thick;
        ctx.beginPath();
        ctx.arc(x, y, 5, 0, 2 * Math.PI);
        ctx.stroke();
      }
    }
    if (panel.orientation) {
      const [l, r, t, b] = panel.orientation;
      text(l, 5, height / 2, "left", "middle");
      text(r, width - 5, height / 2, "right", "middle");
      text(t, width / 2, 4, "center", "top");
      text(b, width / 2, height - 4, "center", "bottom");
    }
    ctx.font = "12px sans-serif";
    const label = panel.slice_labels?.[Math.min(this.s.slice, panel.n - 1)];
    // Below the orientation letter where a narrow panel has no room beside it.
    if (label) text(label, 6, ctx.measureText(label).width > width / 2 - 18 ? 22 : 6, "left", "top");
    if (panel.badge) {
      ctx.font = "600 12px sans-serif";
      const lines = wrap(ctx, panel.badge, width - 16);
      ctx.fillStyle = "rgba(150,0,0,0.9)";
      ctx.fillRect(0, 24, width, 16 * lines.length + 6);
      ctx.fillStyle = "#fff";
      ctx.textAlign = "left";
      ctx.textBaseline = "top";
      lines.forEach((line, i) => ctx.fillText(line, 8, 28 + 16 * i));
      ctx.font = "12px sans-serif";
    }
    if (panel.spacing_mm) {
      const perMm = fit.width / fit.ratio / (panel.columns * panel.spacing_mm[1]);
      const length = [200, 100, 50, 20, 10, 5, 2, 1].find((mm) => mm * perMm < width / 3) || 1;
      ctx.fillStyle = "#000";
      ctx.fillRect(7, height - 10, length * perMm + 2, 5);
      ctx.fillStyle = "#fff";
      ctx.fillRect(8, height - 9, length * perMm, 3);
      text(`${length} mm`, 8, height - 13, "left", "bottom");
    }
    if (this.probe) {
      const x = left + (this.probe.x * fit.width) / fit.ratio;
      const y = top + (this.probe.y * fit.height) / fit.ratio;
      ctx.lineWidth = 1;
      for (const [colour, shift] of [["rgba(0,0,0,0.7)", 1], ["#7fe3ff", 0]]) {
        ctx.strokeStyle = colour;
        ctx.beginPath();
        ctx.moveTo(x - 9, y + shift);
        ctx.lineTo(x + 9, y + shift);
        ctx.moveTo(x + shift, y - 9);
        ctx.lineTo(x + shift, y + 9);
        ctx.stroke();
      }
    }
  }

  readProbe(panel) {
    if (!this.probe) {
      panel.readout.textContent = "";
      return;
    }
    const at = (fraction, count) => Math.min(Math.floor(fraction * count), count - 1);
    const [row, column] = [at(this.probe.y, panel.rows), at(this.probe.x, panel.columns)];
    const i = at(this.probe.y, panel.h) * panel.w + at(this.probe.x, panel.w);
    const parts = [`row ${row}, column ${column}`];
    if (panel.spacing_mm) {
      parts.push(`${(row * panel.spacing_mm[0]).toFixed(1)} × ${(column * panel.spacing_mm[1]).toFixed(1)} mm`);
    }
    parts.push(`image ${format(this.slice(panel, panel.image)[i], panel.range[1] - panel.range[0])}`);
    if (panel.saliency) parts.push(`map ${(this.slice(panel, panel.saliency)[i] / 255).toFixed(2)}`);
    panel.readout.textContent = parts.join(" · ");
  }

  save() {
    const gap = 12;
    const head = 28;
    const widths = this.panels.map((p) => p.canvas.width);
    const height = Math.max(...this.panels.map((p) => p.canvas.height));
    const sheet = element("canvas", {
      width: widths.reduce((a, b) => a + b, 0) + gap * (widths.length + 1), height: height + head + 40,
    });
    const ctx = sheet.getContext("2d");
    ctx.fillStyle = "#fff";
    ctx.fillRect(0, 0, sheet.width, sheet.height);
    ctx.fillStyle = "#111";
    ctx.font = "14px sans-serif";
    this.probe = null;
    let x = gap;
    for (const panel of this.panels) {
      this.drawPanel(panel);
      ctx.fillText(panel.title, x, 19, panel.canvas.width);
      ctx.drawImage(panel.canvas, x, head);
      if (panel.bar) {
        ctx.drawImage(panel.bar, x + 14, head + height + 8, panel.canvas.width - 28, 10);
        ctx.fillText("0", x, head + height + 18);
        ctx.fillText("1", x + panel.canvas.width - 9, head + height + 18);
        ctx.fillText(panel.units, x + 14, head + height + 34, panel.canvas.width - 28);
      }
      x += panel.canvas.width + gap;
    }
    sheet.toBlob((blob) => {
      const link = element("a", { href: URL.createObjectURL(blob), download: `${this.header.key}.png` });
      this.root.append(link);
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }
}

// Line segments where `values` cross `level` (marching squares); outside the array counts as 0, so every line closes.
function marchingSquares(values, w, h, level) {
  const path = new Path2D();
  const at = (x, y) => (x < 0 || y < 0 || x >= w || y >= h ? 0 : values[y * w + x]);
  const cut = (a, b) => (level - a) / (b - a);
  for (let y = -1; y < h; y++) {
    for (let x = -1; x < w; x++) {
      const a = at(x, y), b = at(x + 1, y), c = at(x + 1, y + 1), d = at(x, y + 1);
      const kind = (a >= level) | ((b >= level) << 1) | ((c >= level) << 2) | ((d >= level) << 3);
      if (kind === 0 || kind === 15) continue;
      const edges = [
        () => [x + cut(a, b), y], () => [x + 1, y + cut(b, c)], () => [x + cut(d, c), y + 1], () => [x, y + cut(a, d)],
      ];
      for (const [from, to] of SEGMENTS[kind]) {
        const p = edges[from](), q = edges[to]();
        path.moveTo(p[0] + 0.5, p[1] + 0.5);
        path.lineTo(q[0] + 0.5, q[1] + 0.5);
      }
    }
  }
  return path;
}

// Edges 0 top, 1 right, 2 bottom, 3 left; by which corners (1 top left, 2 top right, 4 bottom right, 8 bottom left) are in.
const SEGMENTS = [
  [], [[3, 0]], [[0, 1]], [[3, 1]], [[1, 2]], [[3, 0], [1, 2]], [[0, 2]], [[3, 2]],
  [[2, 3]], [[2, 0]], [[0, 1], [2, 3]], [[2, 1]], [[1, 3]], [[1, 0]], [[0, 3]], [],
];

function wrap(ctx, words, width) {
  const lines = [""];
  for (const word of words.split(" ")) {
    const next = `${lines[lines.length - 1]} ${word}`.trim();
    if (ctx.measureText(next).width > width && lines[lines.length - 1]) lines.push(word);
    else lines[lines.length - 1] = next;
  }
  return lines;
}

function element(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

function format(value, span) {
  return span >= 20 ? String(Math.round(value)) : value.toFixed(span >= 2 ? 1 : 3);
}
