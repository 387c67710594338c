(() => {
const root = document.getElementById("sound-map");
const pick = what => root.querySelector(what);
const data = JSON.parse(pick("script[type='application/json']").textContent);
const canvas = pick("canvas"), pen = canvas.getContext("2d");
const audio = pick("audio"), tip = pick(".tip");
const count = data.tracks.length, SHAPES = 6, GROUPS = 24, GREY = "#777777";
let view = {scale: 1, x: 0, y: 0}, size = {width: 1, height: 1, side: 1};
let selected = -1, hovered = -1, playing = -1, hits = null;
let colouring = data.colourings[0], chosen = null;
const label = index => data.titles[index] || data.tracks[index];
// A track's groups, the largest first; -1 is what the legend has no room for.
const groupsOf = index => {
  const listed = colouring.of[index].filter(group => group < GROUPS);
  return listed.length ? listed : [-1];
};

const make = (tag, text, parent) => {
  const node = document.createElement(tag);
  node.textContent = text;
  parent.append(node);
  return node;
};
const button = (text, parent, act) => {
  const node = make("button", text, parent);
  node.type = "button";
  node.addEventListener("click", act);
  return node;
};
const place = index => {
  const [x, y] = data.points[index], {side, width, height} = size;
  return [(width - side) / 2 + side * x * view.scale + view.x,
          (height - side) / 2 + side * y * view.scale + view.y];
};
// Groups differ in colour and in shape; the smallest share a grey dot.
const look = group => group < 0
  ? {colour: GREY, shape: 0, small: true}
  : {colour: data.palette[group % data.palette.length],
     shape: (group + Math.floor(group / SHAPES)) % SHAPES};
const corners = [null, [[-1, -1], [1, -1], [1, 1], [-1, 1]],
  [[0, -1.2], [1.1, .8], [-1.1, .8]],
  [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]],
  [[0, 1.2], [1.1, -.8], [-1.1, -.8]],
  [[-.4, -1.2], [.4, -1.2], [.4, -.4], [1.2, -.4], [1.2, .4], [.4, .4],
   [.4, 1.2], [-.4, 1.2], [-.4, .4], [-1.2, .4], [-1.2, -.4], [-.4, -.4]]];
const outline = (path, shape, x, y, radius) => {
  if (!shape) return path.arc(x, y, radius, 0, 7);
  corners[shape].forEach(([dx, dy], i) =>
    path[i ? "lineTo" : "moveTo"](x + dx * radius, y + dy * radius));
  path.closePath();
};
const dot = index => {
  const mine = groupsOf(index);
  const {colour, shape, small} = look(mine.includes(chosen) ? chosen : mine[0]);
  const [x, y] = place(index);
  const radius = (small ? .7 : 1) * (count > 5000 ? 2.5 : count > 500 ? 4 : 6);
  if (x < -9 || y < -9 || x > size.width + 9 || y > size.height + 9) return;
  pen.globalAlpha = hits && !hits.has(index) ? .15 : 1;
  pen.fillStyle = colour;
  pen.beginPath();
  outline(pen, shape, x, y, radius);
  pen.fill();
  pen.stroke();
};
const ring = (index, radius, width) => {
  const [x, y] = place(index);
  pen.lineWidth = width;
  pen.beginPath();
  pen.arc(x, y, radius, 0, 7);
  pen.stroke();
};
let waiting = false;
const draw = () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const mark = getComputedStyle(root).getPropertyValue("--mark").trim();
    const ratio = window.devicePixelRatio || 1;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, size.width, size.height);
    pen.strokeStyle = mark;
    if (selected >= 0) {
      pen.lineWidth = 1.5;
      pen.globalAlpha = .6;
      pen.beginPath();
      for (const other of data.neighbours[selected]) {
        pen.moveTo(...place(selected));
        pen.lineTo(...place(other));
      }
      pen.stroke();
    }
    pen.lineWidth = count > 5000 ? .4 : .8;
    for (let index = 0; index < count; index++) dot(index);
    pen.globalAlpha = 1;
    if (selected >= 0) {
      data.neighbours[selected].forEach(other => ring(other, 9, 1.5));
      ring(selected, 12, 3);
    }
    if (playing >= 0 && playing !== selected) ring(playing, 12, 3);
    if (hovered >= 0) ring(hovered, 9, 1);
  });
};
const resize = () => {
  const box = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  canvas.width = box.width * ratio;
  canvas.height = box.height * ratio;
  size = {width: box.width, height: box.height,
          side: Math.max(Math.min(box.width, box.height) - 40, 1)};
  show(hovered);
};
const zoom = (factor, x = size.width / 2, y = size.height / 2) => {
  if (!factor) view = centred(1);
  else {
    const left = (size.width - size.side) / 2;
    const top = (size.height - size.side) / 2;
    view = {scale: view.scale * factor,
      x: (view.x + left - x) * factor + x - left,
      y: (view.y + top - y) * factor + y - top};
  }
  show(hovered);
};
// What is smaller than the square lies in its middle.
const most = axis => data.points.reduce((a, p) => Math.max(a, p[axis]), 0);
const extent = [most(0), most(1)];
const centred = scale => ({scale,
  x: size.side * (1 - extent[0]) / 2, y: size.side * (1 - extent[1]) / 2});
const at = event => {
  const box = canvas.getBoundingClientRect();
  const x = event.clientX - box.left, y = event.clientY - box.top;
  let best = -1, least = 14 ** 2;
  for (let index = 0; index < count; index++) {
    const [px, py] = place(index), far = (px - x) ** 2 + (py - y) ** 2;
    if (far < least) [best, least] = [index, far];
  }
  return best;
};
const show = index => {
  hovered = index;
  tip.hidden = index < 0;
  if (index >= 0) {
    tip.textContent = label(index);
    const [x, y] = place(index), right = x > size.width / 2;
    tip.style.left = right ? "auto" : `${x + 12}px`;
    tip.style.right = right ? `${size.width - x + 12}px` : "auto";
    tip.style.top = `${Math.min(Math.max(y - 12, 0), size.height - 30)}px`;
  }
  draw();
};
const trouble = pick(".trouble");
const play = index => {
  playing = index;
  trouble.textContent = "";
  const address = data.audio[index];
  if (address) {
    audio.src = address;
    audio.setAttribute("aria-label", label(index));
    // Of a refusal the error event tells; of an interruption nobody need know.
    audio.play().catch(() => {});
  } else {
    audio.removeAttribute("src");
    trouble.textContent = "There is no sound of this track in the page.";
  }
  for (const node of root.querySelectorAll(".near button[data-track]")) {
    const here = Number(node.dataset.track) === index;
    node.classList.toggle("playing", here);
    here ? node.setAttribute("aria-current", "true")
         : node.removeAttribute("aria-current");
  }
  draw();
};
audio.addEventListener("error", () => {
  if (audio.hasAttribute("src")) trouble.textContent = data.clipped
    ? "The browser cannot play this clip."
    : "The browser cannot play this file: it is not where it was, or of a kind"
      + " that the browser does not know.";
});
const select = index => {
  selected = index;
  pick(".name").textContent = label(index);
  pick(".path").textContent = data.titles[index] && data.tracks[index];
  pick(".tags").textContent = data.tags[index].join(", ");
  pick(".near").hidden = false;
  const list = pick(".near ol");
  list.replaceChildren();
  data.neighbours[index].forEach((other, rank) => {
    const item = make("li", "", list);
    const cosine = data.cosines[index][rank].toFixed(2);
    const name = button(`▶ ${label(other)} (${cosine})`, item,
                        () => play(other));
    name.dataset.track = other;
    name.addEventListener("mouseenter", () => show(other));
    name.addEventListener("focus", () => show(other));
    const go = button("→", item, () => select(other));
    go.setAttribute("aria-label", `Go to ${label(other)}`);
  });
  play(index);
};
// What the search and the chosen group leave; null where both leave all.
const filter = () => {
  const words = pick("#find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const list = pick(".hits");
  list.replaceChildren();
  hits = words.length || chosen !== null ? new Set() : null;
  for (let index = 0; hits && index < count; index++) {
    const text = [data.tracks[index], data.titles[index], ...data.tags[index]]
      .join(" ").toLowerCase();
    if (words.every(word => text.includes(word))
        && (chosen === null || groupsOf(index).includes(chosen))) {
      hits.add(index);
    }
  }
  if (words.length) {
    for (const index of [...hits].slice(0, 10)) {
      button(label(index), make("li", "", list), () => select(index));
    }
    const rest = hits.size - 10;
    if (rest > 0) make("li", `and ${rest} more`, list);
    if (!hits.size) make("li", "No track has that.", list);
  }
  draw();
};
const SVG = "http://www.w3.org/2000/svg";
const icon = group => {
  const {colour, shape} = look(group);
  const node = document.createElementNS(SVG, "svg");
  node.setAttribute("viewBox", "-8 -8 16 16");
  node.setAttribute("aria-hidden", "true");
  const drawn = document.createElementNS(SVG, shape ? "polygon" : "circle");
  shape ? drawn.setAttribute("points", corners[shape].map(c =>
    c.map(v => 5 * v).join()).join(" ")) : drawn.setAttribute("r", 5);
  drawn.setAttribute("fill", colour);
  drawn.setAttribute("stroke", "currentColor");
  node.append(drawn);
  return node;
};
const legend = () => {
  const list = pick(".legend"), tally = new Map();
  list.replaceChildren();
  for (let index = 0; index < count; index++) {
    for (const group of groupsOf(index)) {
      tally.set(group, (tally.get(group) ?? 0) + 1);
    }
  }
  const names = [...colouring.groups.slice(0, GROUPS).entries(), [-1, "others"]];
  for (const [group, name] of names) {
    if (!tally.has(group)) continue;
    const entry = button("", make("li", "", list), () => {
      chosen = chosen === group ? null : group;
      for (const other of list.querySelectorAll("button")) {
        other.setAttribute("aria-pressed", other === entry && chosen !== null);
      }
      filter();
    });
    entry.setAttribute("aria-pressed", false);
    entry.append(icon(group));
    make("span", `${name} (${tally.get(group)})`, entry);
  }
  filter();
};
const MOVES = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1],
               ArrowDown: [0, 1]};
// The nearest point that lies more in this direction than to either side.
const step = ([dx, dy]) => {
  if (hovered < 0) return show(selected >= 0 ? selected : 0);
  const [x, y] = place(hovered);
  let best = hovered, least = Infinity;
  for (let index = 0; index < count; index++) {
    const [px, py] = place(index), ahead = (px - x) * dx + (py - y) * dy;
    const aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
    const far = ahead ** 2 + 4 * aside ** 2;
    if (ahead > 0 && aside <= ahead && far < least) {
      [best, least] = [index, far];
    }
  }
  show(best);
  pick(".said").textContent = label(best);
};
canvas.addEventListener("keydown", event => {
  if (MOVES[event.key]) step(MOVES[event.key]);
  else if (event.key === "Enter" && hovered >= 0) select(hovered);
  else if (event.key === "+" || event.key === "=") zoom(1.5);
  else if (event.key === "-") zoom(1 / 1.5);
  else if (event.key === "0") zoom(0);
  else return;
  event.preventDefault();
});
let drag = null;
canvas.addEventListener("pointerdown", event => {
  drag = {x: event.clientX, y: event.clientY, view, moved: false};
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", event => {
  if (!drag) return show(at(event));
  const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
  drag.moved ||= Math.hypot(dx, dy) > 4;
  if (drag.moved) {
    view = {...view, x: drag.view.x + dx, y: drag.view.y + dy};
    show(-1);
  }
});
canvas.addEventListener("pointerup", event => {
  const index = drag && !drag.moved ? at(event) : -1;
  drag = null;
  if (index >= 0) select(index);
});
canvas.addEventListener("pointercancel", () => { drag = null; });
canvas.addEventListener("pointerleave", () => show(-1));
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  const box = canvas.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left,
       event.clientY - box.top);
}, {passive: false});
root.querySelectorAll("[data-zoom]").forEach(node =>
  node.addEventListener("click", () => zoom(Number(node.dataset.zoom))));
pick("#find").addEventListener("input", filter);
pick("#find").addEventListener("keydown", event => {
  if (event.key === "Enter" && hits?.size) select([...hits][0]);
});
data.colourings.forEach((one, i) => {
  make("option", one.name, pick("#colour")).value = i;
});
pick("#colour").addEventListener("change", event => {
  colouring = data.colourings[Number(event.target.value)];
  chosen = null;
  legend();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
new ResizeObserver(resize).observe(canvas);
resize();
zoom(0);
legend();
})();
