// The view of a ring walk. All that it shows was computed in Python and came once, as `walk`; stepping needs no kernel.
// Structure of `walk`: see `_ring` in ring_walk.py. The two numbers that change are `num_ranks` and `step`.

const WIDTH = 520, HEIGHT = 450, RADIUS_X = 190, RADIUS_Y = 172, CELL = 13, CELL_HEIGHT = 22;
const PLAY_MS = 900;

// The ring for one number of ranks. Returns a function that shows one moment.
function drawRing(parent, numRanks) {
  const svg = node(parent, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "rw-ring" });
  const marker = node(node(svg, "defs"), "marker", {
    id: "rw-head", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 5, markerHeight: 5, orient: "auto",
  });
  node(marker, "path", { d: "M0,0 L8,4 L0,8 z", class: "rw-head" });
  const at = rank => {
    const angle = (2 * Math.PI * rank) / numRanks;
    return [WIDTH / 2 + RADIUS_X * Math.sin(angle), HEIGHT / 2 + 6 - RADIUS_Y * Math.cos(angle)];
  };
  const wires = node(svg, "g");
  const cell = Math.min(CELL, 84 / numRanks);
  const cells = [];
  for (let rank = 0; rank < numRanks; rank++) {
    const next = (rank + 1) % numRanks;
    node(wires, "line", { x1: at(rank)[0], y1: at(rank)[1], x2: at(next)[0], y2: at(next)[1], class: "rw-wire" });
    const [x, y] = at(rank), left = x - (cell * numRanks) / 2;
    node(svg, "rect", { x: left - 5, y: y - CELL_HEIGHT / 2 - 19, width: cell * numRanks + 10, height: CELL_HEIGHT + 24, rx: 4, class: "rw-rank" });
    node(svg, "text", { x, y: y - CELL_HEIGHT / 2 - 6, class: "tw-middle rw-name" }, `rank ${rank}`);
    cells.push(Array.from({ length: numRanks }, (_, chunk) => ({
      shape: rectangle(svg, left + chunk * cell, y - CELL_HEIGHT / 2, cell - 1, CELL_HEIGHT, "rw-cell"),
      count: node(svg, "text", { x: left + (chunk + 0.5) * cell - 0.5, y: y + 4, class: "tw-middle rw-count" }),
    })));
  }
  const arrows = node(svg, "g"); // above the ranks
  return moment => {
    arrows.replaceChildren();
    const arriving = new Set(moment.arrows.map(([, destination, chunk]) => `${destination}/${chunk}`));
    for (const [source, destination, chunk] of moment.arrows) {
      const [x1, y1] = at(source), [x2, y2] = at(destination);
      const [a, b] = [0.3, 0.7].map(share => [x1 + share * (x2 - x1), y1 + share * (y2 - y1)]);
      node(arrows, "line", { x1: a[0], y1: a[1], x2: b[0], y2: b[1], class: "rw-arrow", "marker-end": "url(#rw-head)" });
      const dot = node(arrows, "circle", { r: 6, class: "rw-dot" });
      node(dot, "animateMotion", { dur: "0.8s", repeatCount: "indefinite", path: `M${x1},${y1} L${x2},${y2}` });
      const [mx, my] = [(x1 + x2) / 2, (y1 + y2) / 2];
      const out = [mx - WIDTH / 2, my - HEIGHT / 2 - 6], length = Math.hypot(...out) || 1;
const x = mx + (38 * out[0]) / length, y = my - 2 + (28 * out[1]) / length;
      const text = node(arrows, "text", { x, y, class: "tw-middle rw-chunk" });
      node(text, "tspan", { x, class: "rw-name" }, `chunk ${chunk}`);
      node(text, "tspan", { x, dy: 13 }, moment.label);
    }
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) svg.pauseAnimations();
    cells.forEach((copies, rank) => copies.forEach(({ shape, count }, chunk) => {
      const summed = moment.summed[rank][chunk], whole = summed.length === numRanks;
      const state = whole ? " rw-whole" : "";
      shape.setAttribute("class", "rw-cell" + state + (arriving.has(`${rank}/${chunk}`) ? " rw-arrived" : ""));
      shape.style.fillOpacity = whole ? 0.9 : 0.12 + (0.6 * (summed.length - 1)) / numRanks;
      count.textContent = summed.length;
    }));
    svg.setAttribute("aria-label", moment.caption);
  };
}

function render({ model, el }) {
  const rings = model.get("walk").rings;
  const root = node(el, "div", { class: "tw rw" });
  keepOwnKeys(root);
  const bar = node(root, "div", { class: "tw-bar" });
  const body = node(root, "div", { class: "tw-body" });
  const picture = node(body, "div", { class: "tw-picture" });
  const side = node(body, "div", { class: "tw-side" });
  const moments = () => rings[model.get("num_ranks")].moments;
  const atEnd = () => model.get("step") === moments().length - 1;
  const go = (numRanks, step) => {
    const last = rings[numRanks].moments.length - 1;
    model.set({ num_ranks: numRanks, step: Math.min(Math.max(step, 0), last) });
    show();
    model.save_changes();
  };
  const move = by => go(model.get("num_ranks"), model.get("step") + by);
  const ranks = slider(bar, "ranks", "rw-ranks", value => { pause(); go(value, 0); });
  const steps = slider(bar, "step", "tw-step", value => { pause(); go(model.get("num_ranks"), value); });
  const { pause } = player(bar, { move, atEnd, restart: () => go(model.get("num_ranks"), 0), everyMs: PLAY_MS });

  const drawing = node(picture, "div");
  const legend = node(picture, "div", { class: "tw-legend" });
  for (const [className, text] of [["rw-part", "some ranks summed (the number says how many)"], ["rw-whole", "the whole sum"], ["rw-arrived", "just arrived"]]) {
    const item = node(legend, "span");
    node(item, "i", { class: className });
    item.append(text);
  }
  const caption = node(side, "div", { class: "tw-caption rw-caption", "aria-live": "polite" });
  const meters = node(side, "div", { class: "rw-meters" });
  const meter = (label, className) => {
    node(meters, "span", {}, label);
    const track = node(meters, "span", { class: "tw-track" });
    return { fill: node(track, "span", { class: `tw-fill ${className}` }), text: node(meters, "span", { class: `tw-number ${className}-text` }) };
  };
  const sent = meter("sent by each rank", "rw-sent"), complete = meter("chunks with the whole sum", "rw-complete");
  const formula = node(side, "div", { class: "tw-note rw-formula" });

  let drawn = null, showRing = null; // the number of ranks that is drawn, and how to show a moment of it
  const show = () => {
    const numRanks = model.get("num_ranks");
    if (drawn !== numRanks) {
      drawn = numRanks;
      drawing.replaceChildren();
      showRing = drawRing(drawing, numRanks);
      ranks.input.min = 2;
      ranks.input.max = Math.max(...Object.keys(rings).map(Number));
      steps.input.max = moments().length - 1;
      formula.textContent = rings[numRanks].formula;
    }
    const step = Math.min(model.get("step"), moments().length - 1), moment = moments()[step];
    ranks.input.value = numRanks;
    ranks.out.textContent = numRanks;
    steps.input.value = step;
    steps.out.textContent = `${step} of ${moments().length - 1}`;
    steps.input.setAttribute("aria-valuetext", moment.caption);
    caption.textContent = moment.caption;
    sent.fill.style.width = `${100 * moment.sent_share}%`;
    sent.text.textContent = moment.sent;
    complete.fill.style.width = `${100 * moment.complete_share}%`;
    complete.text.textContent = moment.complete;
    showRing(moment);
  };
  model.on("change:num_ranks", show);
  model.on("change:step", show);
  show();
  return () => { pause(); model.off("change:num_ranks", show); model.off("change:step", show); };
}

export default { render };
