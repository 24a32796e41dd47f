// The view of a tile walk. All that it shows was computed in Python and came once, as `walk`; stepping needs no kernel.
// Structure of `walk`: see `_payload` in tile_walk.py. The two numbers that change are `program` and `step`.

const SIZE = 320; // edge of the score matrix, in SVG units
const LEFT = 74, TOP = 84, STRIP = 20, GAP = 8;
const PLAY_MS = 450;

const same = (a, b) => a !== null && b !== null && a[0] === b[0];

// The score matrix with K and V above it, Q on its left and O on its right. Returns a function that shows one step.
function drawMatrix(parent, walk) {
  const svg = node(parent, "svg", {
    viewBox: `0 0 ${LEFT + SIZE + 2 * GAP + STRIP + 30} ${TOP + SIZE + 22}`, role: "img", class: "tw-matrix",
  });
  const hatch = node(node(svg, "defs"), "pattern", {
    id: `hatch-${walk.id}`, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)",
  });
  node(hatch, "line", { x1: 0, y1: 0, x2: 0, y2: 6, class: "tw-hatch" });
  const x = key => LEFT + (SIZE * key) / walk.num_keys;
  const y = query => TOP + (SIZE * query) / walk.num_queries;
  const column = (range, top, className) =>
    rectangle(svg, x(range[0]) + 1, top, x(range[1]) - x(range[0]) - 2, STRIP, className);
  const row = (range, left, className) =>
    rectangle(svg, left, y(range[0]) + 1, STRIP, y(range[1]) - y(range[0]) - 2, className);

  const kTop = TOP - 2 * (STRIP + GAP), vTop = TOP - STRIP - GAP;
  const qLeft = LEFT - STRIP - GAP, oLeft = LEFT + SIZE + GAP;
  node(svg, "text", { x: LEFT - GAP, y: kTop + 15, class: "tw-name tw-end" }, "K");
  node(svg, "text", { x: LEFT - GAP, y: vTop + 15, class: "tw-name tw-end" }, "V");
  node(svg, "text", { x: qLeft + STRIP / 2, y: TOP + SIZE + 16, class: "tw-name tw-middle" }, "Q");
  node(svg, "text", { x: oLeft + STRIP / 2, y: TOP + SIZE + 16, class: "tw-name tw-middle" }, "O");
  node(svg, "text", { x: LEFT + SIZE / 2, y: 14, class: "tw-axis tw-middle" }, `keys 0 to ${walk.num_keys - 1}`);
  const middle = TOP + SIZE / 2;
  node(svg, "text", { x: 14, y: middle, class: "tw-axis tw-middle", transform: `rotate(-90 14 ${middle})` },
    `queries 0 to ${walk.num_queries - 1}`);
  node(svg, "text", { x: LEFT + SIZE / 2, y: TOP + SIZE + 16, class: "tw-axis tw-middle" }, "scores S = Q Kᵀ, never in HBM");

  const keyBlocks = walk.key_blocks.map(range => ({ range, k: column(range, kTop), v: column(range, vTop) }));
  const queryBlocks = walk.query_blocks.map(range => ({ range, q: row(range, qLeft), o: row(range, oLeft) }));
  const tiles = walk.query_blocks.flatMap(queries => walk.key_blocks.map(keys => ({
    queries, keys,
    shape: rectangle(svg, x(keys[0]) + 1, y(queries[0]) + 1, x(keys[1]) - x(keys[0]) - 2, y(queries[1]) - y(queries[0]) - 2),
  })));
  if (walk.causal) node(svg, "line", { x1: x(0), y1: y(0), x2: x(Math.min(walk.num_keys, walk.num_queries)),
    y2: y(Math.min(walk.num_keys, walk.num_queries)), class: "tw-diagonal" });

  return (program, step) => {
    const order = new Map(walk.programs.filter(p => p.plane === program.plane).map(p => [p.query_rows[0], p]));
    const current = step.key_rows;
    const reached = current === null ? -1 : program.visited.findIndex(keys => keys[0] === current[0]);
    const mark = (shape, className) => { if (shape.getAttribute("class") !== className) shape.setAttribute("class", className); };
    const fill = name => step.loaded.includes(name) ? (step.name === name && step.rows ? "tw-block tw-moving" : "tw-block tw-held") : "tw-block";
    for (const { range, k, v } of keyBlocks) {
      mark(k, same(range, current) ? fill("k") : "tw-block");
      mark(v, same(range, current) ? fill("v") : "tw-block");
    }
    for (const { range, q, o } of queryBlocks) {
      const owner = order.get(range[0]);
      const mine = owner === program;
      mark(q, mine ? fill("q") : "tw-block");
      const stored = mine ? step.stored.includes("o") : owner && owner.index < program.index;
      mark(o, "tw-block" + (mine && step.name === "o" ? " tw-moving" : stored ? " tw-stored" : ""));
    }
    for (const { queries, keys, shape } of tiles) {
      const owner = order.get(queries[0]);
      const at = owner ? owner.visited.findIndex(range => range[0] === keys[0]) : -1;
      const done = owner && (owner.index < program.index || (owner === program && (at < reached || step.finished)));
      let state = "tw-waiting";
      if (at < 0) state = "tw-skipped";
      else if (owner === program && at === reached && !step.finished) state = "tw-current";
      else if (done) state = owner === program ? "tw-visited" : "tw-earlier";
      mark(shape, "tw-tile " + state);
      shape.style.fill = state === "tw-skipped" ? `url(#hatch-${walk.id})` : "";
    }
    svg.setAttribute("aria-label", `Score matrix of ${walk.query_blocks.length} by ${walk.key_blocks.length} tiles. ` +
      `${program.label}. ${step.caption}`);
  };
}

function drawLegend(parent, causal) {
  const legend = node(parent, "div", { class: "tw-legend" });
  const items = [["tw-current", "tile at hand"], ["tw-visited", "visited by this program"], ["tw-earlier", "by earlier programs"],
    ["tw-waiting", "to come"], ...(causal ? [["tw-skipped", "skipped (causal)"]] : []), ["tw-held", "held on chip"], ["tw-stored", "stored to HBM"]];
  for (const [className, text] of items) {
    const item = node(legend, "span");
    node(item, "i", { class: className });
    item.append(text);
  }
}

function drawRows(parent) {
  const table = node(parent, "table", { class: "tw-rows" });
  const head = node(node(table, "thead"), "tr");
  for (const text of ["query", "max m", "sum l", "rescale α = exp(m before − m now)"]) node(head, "th", { scope: "col" }, text);
  const body = node(table, "tbody");
  return (program, step) => {
    while (body.rows.length > program.sampled_rows.length) body.deleteRow(-1);
    while (body.rows.length < program.sampled_rows.length) {
      const line = body.insertRow();
      for (let i = 0; i < 3; i++) line.insertCell();
      const cell = node(line, "td", { class: "tw-alpha" });
      node(node(cell, "span", { class: "tw-track" }), "span", { class: "tw-fill" });
      node(cell, "span", { class: "tw-number" });
    }
    program.sampled_rows.forEach((row, i) => {
      const cells = body.rows[i].cells;
      cells[0].textContent = row;
      cells[1].textContent = step.row_max[i] ?? "–";
      cells[2].textContent = step.row_sum[i] ?? "–";
      const factor = step.rescale[i];
      cells[3].querySelector(".tw-fill").style.width = factor === undefined ? "0" : `${100 * factor[0]}%`;
      cells[3].querySelector(".tw-number").textContent = factor === undefined ? "–" : factor[1];
    });
    table.classList.toggle("tw-changed", step.kind === "assign");
  };
}

function drawMeters(parent, meters) {
  const box = node(parent, "div", { class: "tw-meters" });
  const parts = meters.map(meter => {
    node(box, "span", {}, meter.label);
    const track = node(box, "span", { class: "tw-track", role: "meter", "aria-label": meter.label, "aria-valuemin": 0, "aria-valuemax": 100 });
    return { track, fill: node(track, "span", { class: `tw-fill ${meter.className}` }), text: node(box, "span", { class: "tw-number" }) };
  });
  return step => step.meters.forEach(([share, text], i) => {
    parts[i].fill.style.width = `${100 * share}%`;
    parts[i].text.textContent = text;
    parts[i].track.setAttribute("aria-valuenow", Math.round(100 * share));
    parts[i].track.setAttribute("aria-valuetext", text);
  });
}

function render({ model, el }) {
  const walk = model.get("walk");
  const root = node(el, "div", { class: "tw" });
  keepOwnKeys(root);
  const bar = node(root, "div", { class: "tw-bar" });
  const body = node(root, "div", { class: "tw-body" });
  const picture = node(body, "div", { class: "tw-picture" });
  const side = node(body, "div", { class: "tw-side" });

  const go = (program, step) => {
    program = Math.min(Math.max(program, 0), walk.programs.length - 1);
    model.set({ program, step: Math.min(Math.max(step, 0), walk.programs[program].steps.length - 1) });
    show();
    model.save_changes();
  };
  const move = by => {
    const program = model.get("program"), step = model.get("step") + by;
    if (step >= walk.programs[program].steps.length && program + 1 < walk.programs.length) go(program + 1, 0);
    else if (step < 0 && program > 0) go(program - 1, Infinity);
    else go(program, step);
  };
  const programs = slider(bar, "program", "tw-program", value => { pause(); go(value, 0); });
  const steps = slider(bar, "step", "tw-step", value => { pause(); go(model.get("program"), value); });
  const kinds = node(steps.input.parentElement, "span", { class: "tw-kinds", "aria-hidden": "true" });
  const atEnd = () => {
    const program = model.get("program");
    return program === walk.programs.length - 1 && model.get("step") === walk.programs[program].steps.length - 1;
  };
  const { pause } = player(bar, { move, atEnd, restart: () => go(0, 0), everyMs: PLAY_MS });

  const showMatrix = drawMatrix(picture, walk);
  drawLegend(picture, walk.causal);
  const caption = node(side, "div", { class: "tw-caption", "aria-live": "polite" });
  const source = node(side, "pre", { class: "tw-source", tabindex: 0, "aria-label": "line of the kernel" });
  const lineNumber = node(source, "span"), code = node(source, "code");
  const showRows = drawRows(side);
  const showMeters = drawMeters(side, walk.meters);
  for (const note of walk.notes) node(side, "div", { class: "tw-note" }, note);

  let drawn = null; // the program whose steps the slider is set up for
  const show = () => {
    const program = walk.programs[model.get("program")];
    const step = program.steps[model.get("step")];
    if (drawn !== program) {
      drawn = program;
      programs.input.max = walk.programs.length - 1;
      steps.input.max = program.steps.length - 1;
      kinds.replaceChildren();
      for (const { kind } of program.steps) node(kinds, "i", { class: `tw-kind-${kind}` });
    }
    programs.input.value = program.index;
    programs.out.textContent = program.label;
    programs.input.setAttribute("aria-valuetext", program.label);
    steps.input.value = model.get("step");
    steps.out.textContent = `${model.get("step") + 1} of ${program.steps.length}`;
    steps.input.setAttribute("aria-valuetext", step.caption);
    caption.textContent = step.caption;
    lineNumber.textContent = step.line;
    code.textContent = walk.sources[step.source];
    showMatrix(program, step);
    showRows(program, step);
    showMeters(step);
  };
  model.on("change:program", show);
  model.on("change:step", show);
  show();
  return () => { pause(); model.off("change:program", show); model.off("change:step", show); };
}

export default { render };
