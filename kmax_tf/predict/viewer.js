// The viewer of web_demo.py: it sends an image, and shows the result of `views_of`.
const root = document.querySelector(".viewer");
const field = document.querySelector("input[type=file]");
let chosen; // the title of the view that is shown; the next image begins with it too
let newest; // the file that was given last

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// The pixels of a data URL, a number each.
async function pixels(url) {
  const image = make("img", { src: url });
  await image.decode();
  const { naturalWidth: width, naturalHeight: height } = image;
  const context = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);
}

const percent = (share) => (share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const score = (item) => (item.score === null ? "" : item.score.toFixed(2));

function show({ caption, width, height, views }) {
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d");
  const tip = make("div", { className: "tip", hidden: true });
  const list = make("div", { className: "items" });
  const steps = make("div", { className: "steps" });
  let view, rows;

  // Switched off, or with another one alone, an item is as in the photo, which is the first view.
  function draw(alone) {
    const shown = new Uint8Array(65536);
    for (const { id } of view.items) shown[id] = alone === undefined ? !view.off.has(id) : id === alone;
    const data = new ImageData(width, height);
    const out = new Uint32Array(data.data.buffer);
    for (let i = 0; i < out.length; i++) {
      out[i] = shown[view.ids[i] & 65535] ? view.pixels[i] : views[0].pixels[i];
    }
    context.putImageData(data, 0, 0);
  }

  function turn(items, on) {
    for (const { id } of items) {
      view.off[on ? "delete" : "add"](id);
      rows.get(id).querySelector("input").checked = on;
    }
    draw();
  }

  function row(item) {
    const box = make("input", { type: "checkbox", checked: !view.off.has(item.id) });
    const swatch = make("i", {});
    swatch.style.background = `rgb(${item.color})`;
    const cells = [item.name, score(item), percent(item.share)].map((t) => make("span", {}, t));
    const label = make("label", {}, box, swatch, ...cells);
    box.onchange = () => turn([item], box.checked);
    label.onmouseenter = () => draw(item.id);
    label.onmouseleave = () => draw();
    return label;
  }

  async function choose(next) {
    chosen = next.title;
    next.off ??= new Set();
    for (const v of [views[0], next]) v.pixels ??= await pixels(v.picture);
    next.ids ??= await pixels(next.ids_picture);
    if (chosen !== next.title) return; // another one was chosen meanwhile
    view = next;
    rows = new Map(view.items.map((item) => [item.id, row(item)]));
    const all = make("button", { onclick: () => turn(view.items, true) }, "all on");
    const none = make("button", { onclick: () => turn(view.items, false) }, "all off");
    const head = make("div", {}, all, none, make("span", {}, "score"), make("span", {}, "area"));
    list.replaceChildren(...(rows.size ? [head, ...rows.values()] : []));
    tip.hidden = true;
    draw();
  }

  function under({ clientX, clientY }) {
    const box = canvas.getBoundingClientRect();
    const place = (at, side) => Math.min(side - 1, Math.max(0, Math.floor(at * side)));
    const x = place((clientX - box.left) / box.width, width);
    const y = place((clientY - box.top) / box.height, height);
    const id = view && view.ids[y * width + x] & 65535;
    return view?.items.find((item) => item.id === id);
  }

  function point(event) {
    const item = event && under(event);
    for (const [id, label] of rows ?? []) label.classList.toggle("pointed", id === item?.id);
    tip.hidden = !item;
    if (!item) return;
    const sure = score(item);
    tip.textContent = [item.name, sure && `score ${sure}`, percent(item.share)]
      .filter(Boolean).join(" · ");
    tip.style.left = `${event.offsetX + 14}px`;
    tip.style.top = `${event.offsetY + 14}px`;
  }

  canvas.onmousemove = point;
  canvas.onmouseleave = () => point();
  canvas.onclick = (event) => {
    const item = under(event);
    if (item) turn([item], view.off.has(item.id));
  };
  const initial = views.find((v) => v.title === chosen) ?? views.at(-1);
  steps.append(...views.map((v) => {
    const radio = make("input", { type: "radio", name: "view", checked: v === initial });
    radio.onchange = () => choose(v);
    return make("label", {}, radio, v.title);
  }));
  const picture = make("div", { className: "picture" }, canvas, tip);
  root.replaceChildren(make("p", {}, caption), steps, make("div", { className: "sides" }, picture, list));
  choose(initial);
}

function say(text, className) {
  root.replaceChildren(make("p", { className }, text));
}

async function look(file) {
  newest = file;
  say(`${file.name}: segmenting …`, "");
  let answer;
  try {
    const sent = await fetch(`look?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
    const isJson = sent.headers.get("content-type") === "application/json";
    const failed = { refusal: `${file.name}: the server failed (${sent.status}); see its terminal` };
    answer = isJson ? await sent.json() : failed;
  } catch (error) {
    answer = { refusal: `${file.name}: no answer (${error.message}); is kmax serve running?` };
  }
  if (file !== newest) return; // another one was given meanwhile
  if (answer.refusal) say(answer.refusal, "refusal");
  else show(answer);
}

document.ondragover = (event) => event.preventDefault(); // or the browser would open the file
document.ondrop = (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) look(file);
};
field.onchange = () => {
  const [file] = field.files;
  field.value = ""; // the same file again is a change too
  if (file) look(file);
};
