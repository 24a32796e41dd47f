// The view of the bit explorer. Python computes every text of `scene` (see `scene_of` in bit_explorer.py); the browser
// says what was clicked: { action: "toggle" | "format" | "rounding" | "step" | "type" | "number", value }.

const pieces = (parent, list) => {
  parent.replaceChildren();
  for (const [text, className] of list) node(parent, className.startsWith("sup") ? "sup" : "span", { class: className }, text);
};

function menu(parent, label, options, onChange) {
  const box = node(parent, "label", { class: `be-${label}` }, label);
  const select = node(box, "select", { "aria-label": label });
  for (const option of options) node(select, "option", { value: option }, option);
  select.addEventListener("change", () => onChange(select.value));
  return select;
}

// The large bits. One of them takes the focus; arrow keys go on to the next. Rebuilt only when the format changes.
function drawLargeBits(parent, toggle) {
  let drawn = "", bits = [], notes = [];
  const focusOn = place => {
    bits.forEach((bit, i) => { bit.tabIndex = i === place ? 0 : -1; });
    bits[place].focus();
  };
  const build = scene => {
    parent.replaceChildren();
    bits = []; notes = [];
    for (const field of scene.fields) {
      const group = node(parent, "div", { class: `be-field be-${field.name}`, role: "group", "aria-label": field.name });
      const row = node(group, "div", { class: "be-row" });
      for (let i = 0; i < field.bits.length; i++) {
        const place = field.first + i;
        const bit = node(row, "button", { type: "button", class: "be-bit", tabindex: place === 0 ? 0 : -1 });
        bit.addEventListener("click", () => {
          bit.textContent = bit.textContent === "1" ? "0" : "1"; // at once; Python's answer follows
          bit.classList.toggle("be-one", bit.textContent === "1");
          toggle(place);
        });
        bit.addEventListener("keydown", event => {
          const to = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: bits.length - 1 }[event.key];
          if (to !== undefined && to >= 0 && to < bits.length) { event.preventDefault(); focusOn(to); }
        });
        bits.push(bit);
      }
      node(group, "div", { class: "be-name" }, field.name);
      notes.push(node(group, "div", { class: "be-fieldnote" }));
    }
  };
  return scene => {
    if (drawn !== scene.format) { drawn = scene.format; build(scene); }
    parent.classList.toggle("be-many", bits.length > 32);
    scene.fields.forEach((field, number) => {
      notes[number].textContent = field.note;
      [...field.bits].forEach((value, i) => {
        const bit = bits[field.first + i];
        bit.textContent = value;
        bit.classList.toggle("be-one", value === "1");
        bit.setAttribute("aria-pressed", value === "1");
        bit.setAttribute("aria-label", `${field.name} bit ${i + 1} of ${field.bits.length}: ${value}`);
      });
    });
  };
}

function drawFormats(parent, choose) {
  const table = node(parent, "table", { class: "be-formats" });
  const head = node(node(table, "thead"), "tr");
  for (const text of ["format", "bits", "value", "error", "relative"]) node(head, "th", { scope: "col" }, text);
  const body = node(table, "tbody");
  const lines = [];
  return scene => {
    scene.rows.forEach((row, i) => {
      if (!lines[i]) {
        const line = node(body, "tr");
        const name = button(node(line, "td"), row.name, `show the bits of ${row.name}`, () => choose(row.name));
        lines[i] = { line, name, cells: ["bits", "value", "error", "relative"].map(c => node(line, "td", { class: `be-${c}` })) };
      }
      const { line, cells } = lines[i];
      line.dataset.format = row.name;
      line.classList.toggle("be-chosen", row.name === scene.format);
      cells[0].replaceChildren();
      for (const field of row.fields) {
        const group = node(cells[0], "span", { class: `be-small be-${field.name}` });
        for (const value of field.bits) node(group, "i", { class: value === "1" ? "be-one" : "" }, value);
      }
      cells[1].textContent = row.value;
      cells[2].textContent = row.error;
      cells[3].textContent = row.relative;
    });
  };
}

function render({ model, el }) {
  const say = (action, value) => model.send({ action, value });
  const root = node(el, "div", { class: "tw be" });
  keepOwnKeys(root);
  const bar = node(root, "div", { class: "tw-bar" });
  const first = model.get("scene");
  const format = menu(bar, "format", first.formats, value => say("format", value));
  const rounding = menu(bar, "rounding", first.roundings, value => say("rounding", value));
  const box = node(bar, "label", { class: "be-number" }, "number");
  const input = node(box, "input", { type: "text", spellcheck: "false", "aria-label": "number, such as 1 + 2^-11" });
  input.addEventListener("keydown", event => event.stopPropagation());
  input.addEventListener("change", () => say("type", input.value));
  const numbers = node(root, "div", { class: "be-numbers" });
  const message = node(root, "div", { class: "be-message", role: "alert" });
  const showBits = drawLargeBits(node(root, "div", { class: "be-large" }), place => say("toggle", place));
  const result = node(root, "div", { class: "be-result", "aria-live": "polite" });
  const expression = node(result, "span", { class: "be-formula" });
  const value = node(result, "b", { class: "be-result-value" });
  const error = node(result, "span", { class: "be-result-error" });
  const steps = node(root, "div", { class: "be-steps" });
  const down = button(steps, "", "the next smaller number of this format", () => say("step", false));
  const up = button(steps, "", "the next larger number of this format", () => say("step", true));
  const showFormats = drawFormats(root, name => say("format", name));
  let offered = "";
  const show = () => {
    const scene = model.get("scene");
    format.value = scene.format;
    rounding.value = scene.rounding;
    if (!scene.message) input.value = scene.asked;
    message.textContent = scene.message;
    if (offered !== scene.numbers.join()) {
      offered = scene.numbers.join();
      numbers.replaceChildren();
      for (const name of scene.numbers) button(numbers, name, `write ${name}`, () => say("number", name));
    }
    showBits(scene);
    pieces(expression, scene.formula);
    value.textContent = ` = ${scene.value}`;
    error.textContent = scene.error ? `  error: ${scene.error}` : "";
    for (const [element, text, sign] of [[down, scene.below, "◀ "], [up, scene.above, "▶ "]]) {
      element.textContent = sign + (text || "none");
      element.disabled = !text;
    }
    showFormats(scene);
  };
  model.on("change:scene", show);
  show();
  return () => model.off("change:scene", show);
}

export default { render };
