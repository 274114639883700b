"use strict";
// Two systems on the same sentences: how their IoUs differ, and where they differ most.
//
// data.systems: name, label, run, and in the order of the sentences iou (in 1/unit, -1: not judged), right (0 or 1: its
// mask overlaps the right object most; null: unknown), masks (run lengths of the first split; null: none are kept).
// data.sentences: columns split, image, target, text, and for each of data.strata the number of the level, -1 without.
// data.pictures: width, height, address; data.targets: picture, height, width, run lengths; both of the images of the
// first split of which masks are kept.
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("selection"), fields = form.elements;
const element = (id) => document.getElementById(id);
const paragraph = (textContent, className = "") => Object.assign(document.createElement("p"), { textContent, className });
const STEP = 6; // cards that a list shows at first, and adds with each "Show more"
const PICTURE = 320, BINS = 10; // pixels of a canvas, about; bars on each side of zero
const shown = { more: STEP, less: STEP };
let rows = [];

// --- controls --------------------------------------------------------------------------------------------------------

function addOptions(select, options) {
  for (const [value, text] of options) select.add(new Option(text, value));
}

function addSelect(name, title, options) {
  const label = document.createElement("label"), select = document.createElement("select");
  select.name = name;
  addOptions(select, [["", "any"], ...options]);
  label.append(`${title} `, select);
  element("controls").append(label);
  select.disabled = options.length < 2;
}

function makeControls() {
  const without = data.systems.filter((system) => !system.masks).map((system) => system.name);
  const none = without.length === data.systems.length;
  const systems = data.systems.map(({ name, label, masks }) => {
    const words = label === name ? name : `${name}: ${label}`;
    return [name, masks || none ? words : `${words} (no masks)`];
  });
  addOptions(fields.a, systems);
  addOptions(fields.b, systems);
  addOptions(fields.split, data.splits.map((name) => [name, name]));
  for (const { name, title, levels } of data.strata) {
    const present = new Set(data.sentences[name]);
    const options = levels.map((level, number) => [String(number), level]).filter(([number]) => present.has(+number));
    addSelect(name, title[0].toUpperCase() + title.slice(1), options);
  }
  for (const side of ["a", "b"]) addSelect(`right_${side}`, "", [["1", "right object"], ["0", "wrong object"]]);
  fields.b.selectedIndex = 1;
  const words = none ? "No masks are in this evidence" : `No masks of ${without.join(", ")}`;
  const advice = none ? " Runs that are trained now leave masks." : "";
  if (without.length) element("missing").textContent = `${words}: the pictures show the target alone.${advice}`;
  element("swatch").hidden = none;
  element("release").textContent = `Evidence: ${data.release}.`;
}

/** Name the controls that depend on the systems, and grey out those whose records say nothing of objects. */
function renameControls(systems) {
  systems.forEach((system, number) => {
    const select = fields[`right_${"ab"[number]}`];
    select.labels[0].firstChild.data = `Object of ${system.name}${system.right ? "" : " (not in these records)"} `;
    select.disabled = !system.right;
    if (!system.right) select.value = "";
  });
}

/** The selection is in the address after #, so that a link keeps it. */
function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const select of form.querySelectorAll("select")) {
    const value = wanted.get(select.name);
    if ([...select.options].some((option) => option.value === value)) select.value = value;
    else if (wanted.size) [...select.options].forEach((option) => (option.selected = option.defaultSelected));
  }
}

function writeAddress() {
  const entries = [...new FormData(form)].filter(([, value]) => value);
  const address = `#${new URLSearchParams(entries)}`;
  history.replaceState(null, "", address);
  element("link").href = address;
}

// --- numbers ---------------------------------------------------------------------------------------------------------

const points = (value) => (100 * value).toFixed(1).replace("-", "−");
const signed = (value) => (value > 0 ? "+" : "") + points(value);
const share = (count) => `${((100 * count) / rows.length).toFixed(0)}%`;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function selectRows([a, b]) {
  const { sentences, unit } = data, selected = [];
  const strata = data.strata.map(({ name }) => name).filter((name) => fields[name].value !== "");
  const rights = [[fields.right_a.value, a], [fields.right_b.value, b]].filter(([value]) => value !== "");
  sentences.split.forEach((split, i) => {
    if (split !== fields.split.value || a.iou[i] < 0 || b.iou[i] < 0) return;
    if (strata.some((name) => sentences[name][i] !== +fields[name].value)) return;
    if (rights.some(([value, system]) => system.right[i] !== +value)) return;
    selected.push({ i, ious: [a.iou[i] / unit, b.iou[i] / unit], d: (a.iou[i] - b.iou[i]) / unit });
  });
  return selected;
}

/** Return half the width of the 95% interval of the mean difference over images: the sentences of one are correlated. */
function halfWidth(rows, centre) {
  const sums = new Map();
  for (const { i, d } of rows) {
    const image = data.sentences.image[i];
    sums.set(image, (sums.get(image) ?? 0) + d - centre);
  }
  const n = sums.size, squares = [...sums.values()].reduce((sum, value) => sum + value * value, 0);
  return n > 1 ? { images: n, half: (1.96 * Math.sqrt((squares * n) / (n - 1))) / rows.length } : { images: n };
}

/** Return the report's own comparison of the two systems, over all seeds and sentences of val. */
function reportLine([a, b]) {
  const comparison = data.comparisons.find(([one, other]) =>
    (one === a.name && other === b.name) || (one === b.name && other === a.name));
  if (!comparison) return "The report has no comparison of these two over seeds.";
  const [system, , difference, low, high, level, verdict, tier, seeds] = comparison;
  const ends = system === a.name ? [difference, low, high] : [-difference, -high, -low];
  const word = system === a.name ? verdict : { higher: "lower", lower: "higher" }[verdict] ?? verdict;
  return `The report averages over seeds ${seeds.replaceAll(" ", ", ")} and all sentences of val: ${signed(ends[0])}, ` +
    `interval [${signed(ends[1])}, ${signed(ends[2])}] at level ${(100 * level).toFixed(level < 0.99995 ? 2 : 4)}%, ${word} (${tier} tier).`;
}

function showSummary(systems) {
  const [a, b] = systems, lines = [];
  if (!rows.length) lines.push("No sentence is in this selection; widen it.");
  else {
    const centre = mean(rows.map((row) => row.d)), { images, half } = halfWidth(rows, centre);
    const ends = half === undefined ? "" : ` [${signed(centre - half)}, ${signed(centre + half)}]`;
    const count = (test) => share(rows.filter(({ d }) => test(d)).length);
    lines.push(`${a.name} minus ${b.name}: ${signed(centre)} points of IoU${ends} on ${rows.length} sentences of ` +
      `${images} images. The interval (95%) is over images, for these two runs.`);
    lines.push(`Mean IoU ${systems.map(({ name }, k) => `${points(mean(rows.map((row) => row.ious[k])))} (${name})`).join(" and ")}; ` +
      `${a.name} is better on ${count((d) => d > 0)}, worse on ${count((d) => d < 0)}, equal on the rest.`);
    if (a.right && b.right) {
      const rates = systems.map(({ name, right }) => `${share(rows.filter(({ i }) => right[i] === 1).length)} (${name})`);
      lines.push(`The mask overlaps the right object (the one that the sentence names) more than any other: ${rates.join(" and ")}.`);
    }
  }
  if (fields.split.value === "val") lines.push(reportLine(systems));
  element("summary").replaceChildren(...lines.map((line) => paragraph(line)));
}

// --- where the difference comes from ----------------------------------------------------------------------------------

/** Return the mean difference of rows, and its two parts: sentences whose object only one system has, and the others. */
function splitDifference(rows, [a, b]) {
  const total = (part) => part.reduce((sum, { d }) => sum + d, 0) / rows.length;
  if (!a.right || !b.right) return [total(rows)];
  const switched = rows.filter(({ i }) => a.right[i] !== b.right[i]);
  return [total(rows), total(switched), total(rows.filter(({ i }) => a.right[i] === b.right[i]))];
}

function showParts(systems) {
  const line = (title, part) => {
    const row = document.createElement("tr"), [difference, ...parts] = splitDifference(part, systems);
    const added = (difference * part.length) / rows.length; // to the difference of the selection
    const cells = [part.length, ...[difference, added, ...parts].map(signed)];
    row.append(Object.assign(document.createElement("th"), { scope: "row", textContent: title }));
    row.append(...cells.map((textContent) => Object.assign(document.createElement("td"), { textContent })));
    return row;
  };
  const heading = (title) => {
    const row = document.createElement("tr");
    row.append(Object.assign(document.createElement("th"), { scope: "rowgroup", colSpan: 6, textContent: title }));
    return row;
  };
  const body = element("parts");
  body.replaceChildren(...(rows.length ? [line("this selection", rows)] : []));
  for (const { name, title, levels } of data.strata) {
    const parts = levels.map((level, number) => [level, rows.filter(({ i }) => data.sentences[name][i] === number)]);
    const present = parts.filter(([, part]) => part.length);
    if (present.length > 1) body.append(heading(title), ...present.map(([level, part]) => line(level, part)));
  }
  const known = systems.every(({ right }) => right);
  document.querySelectorAll("#parts-table thead .object").forEach((cell) => (cell.hidden = !known));
  element("parts-note").textContent = `${systems[0].name} minus ${systems[1].name}, in points of IoU. “Share”: what these ` +
    "sentences add, in points, to the difference of the selection. Numbers are added before they are rounded. " + (known
    ? "A difference is the sum of “object” and “mask”. “Object”: sentences where one system has the right object and the " +
      "other a wrong one. “Mask”: all other sentences, where both have the right object, or both a wrong one. To see bad " +
      "masks alone, set both “Object of …” to “right object”."
    : "Wrong object or bad mask cannot be told here: the records of these runs do not say which object a mask is of.");
}

// --- histogram -------------------------------------------------------------------------------------------------------

function showHistogram([a, b]) {
  const counts = new Array(2 * BINS + 1).fill(0);
  for (const { d } of rows) counts[BINS + Math.round(d * BINS)] += 1;
  const most = Math.max(1, ...counts), middle = (bin) => signed((bin - BINS) / BINS).replace(/\.0$/, "");
  element("bars").replaceChildren(...counts.map((count, bin) => {
    const bar = document.createElement("div");
    bar.style.height = `${(100 * count) / most}%`;
    bar.className = bin > BINS ? "more-than" : bin < BINS ? "less-than" : "";
    bar.title = `around ${middle(bin)} points: ${count} sentences`;
    return bar;
  }));
  const text = `Sentences by the difference in IoU, ${a.name} minus ${b.name}, in points; the highest bar has ${most}.`;
  element("bars").setAttribute("aria-label", `Histogram. ${text} The table below has the numbers.`);
  element("caption").textContent = text;
  element("bins").innerHTML = counts.map((count, bin) => `<tr><th scope="row">${middle(bin)}</th><td>${count}</td></tr>`).join("");
}

// --- pictures --------------------------------------------------------------------------------------------------------

/** Decode COCO's compressed run lengths to an array of 0 and 1, column by column. */
function decode(text, size) {
  const bits = new Uint8Array(size), runs = [];
  for (let at = 0, place = 0, value = 0; at < text.length;) {
    let shift = 0, code;
    value = 0;
    do {
      code = text.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs.at(-2) : value);
    if (runs.length % 2 === 0) bits.fill(1, place, place + runs.at(-1));
    place += runs.at(-1);
  }
  return bits;
}

function drawMask(context, bits, height, width) {
  const layer = new OffscreenCanvas(width, height), own = layer.getContext("2d");
  const pixels = own.createImageData(width, height);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      if (bits[x * height + y]) pixels.data.set([224, 33, 138, 150], 4 * (y * width + x));
  own.putImageData(pixels, 0, 0);
  context.drawImage(layer, 0, 0, context.canvas.width, context.canvas.height);
}

function drawOutline(context, bits, height, width, colours) {
  const { canvas } = context, path = new Path2D();
  const [right, down] = [canvas.width / width, canvas.height / height];
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && bits[x * height + y] === 1;
  const line = (x, y, toX, toY) => { path.moveTo(x * right, y * down); path.lineTo(toX * right, toY * down); };
  for (let x = 0; x <= width; x++)
    for (let y = 0; y <= height; y++) {
      if (inside(x, y) !== inside(x - 1, y)) line(x, y, x, y + 1);
      if (inside(x, y) !== inside(x, y - 1)) line(x, y, x + 1, y);
    }
  colours.forEach((colour, place) => {
    context.strokeStyle = colour;
    context.lineWidth = 2 * (colours.length - place); // a wide line below a narrow one
    context.stroke(path);
  });
}

function makePicture(i, system, alt) {
  const [number, height, width, target] = data.targets[data.sentences.target[i]];
  const [across, down, address] = data.pictures[number], canvas = document.createElement("canvas");
  const scale = Math.max(1, Math.round(PICTURE / Math.max(across, down)));
  Object.assign(canvas, { width: across * scale, height: down * scale });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", alt);
  const image = new Image(), context = canvas.getContext("2d"), mask = system.masks?.[i];
  image.onload = () => {
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    if (mask) {
      const bits = decode(mask, height * width);
      drawMask(context, bits, height, width);
      drawOutline(context, bits, height, width, ["#e0218a"]);
    }
    drawOutline(context, decode(target, height * width), height, width, ["#000", "#fff"]);
  };
  image.src = address;
  return canvas;
}

// --- the sentences that differ most ----------------------------------------------------------------------------------

function makeCard({ i, ious, d }, systems) {
  const card = document.createElement("li"), pair = document.createElement("div"), { sentences } = data;
  const kind = data.strata[0].levels[sentences[data.strata[0].name][i]]; // none for natural sentences
  pair.className = "pair";
  systems.forEach((system, k) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const object = system.right ? `, ${system.right[i] === 1 ? "right" : "wrong"} object` : "";
    caption.textContent = `${system.name}: IoU ${points(ious[k])}${object}`;
    const mask = system.masks?.[i] ? `the mask of ${system.name} tinted` : `no mask of ${system.name}`;
    const alt = `“${sentences.text[i]}”: target outlined, ${mask}, IoU ${points(ious[k])}`;
    if (data.targets[sentences.target[i]]) figure.append(makePicture(i, system, alt));
    figure.append(caption);
    pair.append(figure);
  });
  card.append(paragraph(`“${sentences.text[i]}”`), paragraph(`${signed(d)} points${kind ? `, ${kind}` : ""}`, "small"), pair);
  return card;
}

function showList(name, systems) {
  const [better, sign] = name === "more" ? [systems[0], 1] : [systems[1], -1], list = element(name);
  const ordered = rows.filter(({ d }) => sign * d > 0).sort((one, other) => sign * (other.d - one.d) || one.i - other.i);
  const pictured = ordered.filter(({ i }) => data.targets[data.sentences.target[i]]);
  const listed = pictured.length ? pictured : ordered;
  const some = pictured.length ? `, ${pictured.length} with pictures` : ` (pictures are kept of ${data.splits[0]} alone)`;
  const note = pictured.length < ordered.length ? some : "";
  element(`head-${name}`).textContent = `${better.name} is better: ${ordered.length} sentences${note}`;
  const from = shown[name] > list.children.length ? list.children.length : 0; // "Show more" keeps the cards
  if (!from) list.replaceChildren();
  list.append(...listed.slice(from, shown[name]).map((row) => makeCard(row, systems)));
  document.querySelector(`[data-list=${name}]`).hidden = listed.length <= shown[name];
}

const currentSystems = () => ["a", "b"].map((side) => data.systems.find(({ name }) => name === fields[side].value));

function update() {
  const systems = currentSystems();
  renameControls(systems);
  rows = selectRows(systems);
  Object.assign(shown, { more: STEP, less: STEP });
  for (const name of ["more", "less"]) element(name).replaceChildren();
  showSummary(systems);
  showParts(systems);
  showHistogram(systems);
  showList("more", systems);
  showList("less", systems);
  writeAddress();
}

makeControls();
for (const select of form.querySelectorAll("select"))
  [...select.options].forEach((option) => (option.defaultSelected = option.selected));
readAddress();
update();
form.addEventListener("change", update);
form.addEventListener("reset", (event) => {
  event.preventDefault(); // the systems and the split stay
  for (const select of form.querySelectorAll("select")) if (select.options[0].value === "") select.value = "";
  update();
});
element("swap").addEventListener("click", () => {
  [fields.a.value, fields.b.value] = [fields.b.value, fields.a.value];
  [fields.right_a.value, fields.right_b.value] = [fields.right_b.value, fields.right_a.value];
  update();
});
for (const button of document.querySelectorAll(".more"))
  button.addEventListener("click", () => {
    shown[button.dataset.list] += STEP;
    showList(button.dataset.list, currentSystems());
  });
window.addEventListener("hashchange", () => { readAddress(); update(); });
