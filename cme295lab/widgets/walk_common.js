// What the walks share: making elements, keeping the keys that they use from the notebook, and playing step by step.
// It is put in front of each walk's own file (see `walk_source` in walk_files.py), so nothing is imported or exported.

const SVG = "http://www.w3.org/2000/svg";
const OWN_KEYS = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown", " ", "Enter"]);

function node(parent, tag, attributes = {}, text = "") {
  const isSvg = tag === "svg" || parent.namespaceURI === SVG;
  const element = isSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  parent.appendChild(element);
  return element;
}

function rectangle(parent, x, y, width, height, className) {
  return node(parent, "rect", { x, y, width: Math.max(width, 0), height: Math.max(height, 0), class: className });
}

function button(parent, text, label, action) {
  const element = node(parent, "button", { type: "button", "aria-label": label, title: label }, text);
  element.addEventListener("click", action);
  return element;
}

function slider(parent, label, className, onInput) {
  const box = node(parent, "label", { class: className }, label);
  const input = node(box, "input", { type: "range", min: 0, step: 1, "aria-label": label });
  input.addEventListener("input", () => onInput(Number(input.value)));
  return { input, out: node(box, "output") };
}

// Else the notebook takes the arrow keys to walk through its cells.
function keepOwnKeys(root) {
  root.addEventListener("keydown", event => {
    if (OWN_KEYS.has(event.key) && !event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
  });
}

// Buttons back, play and on. `move(by)` takes a step, `atEnd()` tells whether there is one, `restart()` goes to the first.
function player(parent, { move, atEnd, restart, everyMs }) {
  let timer = null;
  const buttons = node(parent, "span", { class: "tw-buttons" });
  const pause = () => { clearInterval(timer); timer = null; play.textContent = "▶ play"; play.setAttribute("aria-label", "play"); };
  const start = () => {
    if (atEnd()) restart();
    play.textContent = "❚❚ pause"; play.setAttribute("aria-label", "pause");
    timer = setInterval(() => (atEnd() ? pause() : move(1)), everyMs);
  };
  button(buttons, "◀", "one step back", () => { pause(); move(-1); });
  const play = button(buttons, "▶ play", "play", () => (timer === null ? start() : pause()));
  button(buttons, "▶", "one step on", () => { pause(); move(1); });
  return { pause };
}
