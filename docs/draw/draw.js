// The page on which one draws: ink to pixels as MNIST has them, one pass of the exported network, an answer.
const root = document.getElementById("draw");
const canvas = root.querySelector("canvas");
const ink = canvas.getContext("2d", { willReadFrequently: true });
const [answer, detail] = [root.querySelector(".answer"), root.querySelector(".detail")];
const bars = Array.from({ length: 10 }, (_, digit) => {
  const row = root.querySelector(".bars").appendChild(document.createElement("div"));
  row.append(Object.assign(document.createElement("span"), { textContent: digit }), document.createElement("i"));
  return row.lastChild;
});
const here = new URL(".", import.meta.url).href;
let network;
let last;

function scratch(size) {
  const context = Object.assign(document.createElement("canvas"), { width: size, height: size }).getContext("2d");
  context.imageSmoothingQuality = "high";
  return context;
}

// The ink of a square context, row by row, in [0, 1].
function levels(context, size) {
  const rgba = context.getImageData(0, 0, size, size).data;
  return Float32Array.from({ length: size * size }, (_, index) => rgba[4 * index + 3] / 255);
}

// The drawing as an image [32, 32] with pixels in [0, 1], or null for none: its box is scaled to 20 pixels and its center of
// mass put in the middle of 28 × 28 pixels, which are then resized, as the network's training images were.
function pixels() {
  const drawn = levels(ink, canvas.width);
  const [xs, ys] = [[], []];
  drawn.forEach((level, index) => {
    if (level > 0.1) {
      xs.push(index % canvas.width);
      ys.push(Math.floor(index / canvas.width));
    }
  });
  if (!xs.length) return null;
  const [left, right] = xs.reduce(([low, high], x) => [Math.min(low, x), Math.max(high, x)], [xs[0], xs[0]]);
  const [top, bottom] = [ys[0], ys[ys.length - 1]];
  const [width, height] = [right - left + 1, bottom - top + 1];
  const scale = 20 / Math.max(width, height);
  const box = scratch(28);
  box.drawImage(canvas, left, top, width, height, 0, 0, width * scale, height * scale);
  let [mass, x, y] = [0, 0, 0];
  levels(box, 28).forEach((level, index) => {
    mass += level;
    x += level * (index % 28);
    y += level * Math.floor(index / 28);
  });
  const centered = scratch(28);
  centered.drawImage(box.canvas, Math.round(13.5 - x / mass), Math.round(13.5 - y / mass));
  const resized = scratch(32);
  resized.drawImage(centered.canvas, 0, 0, 32, 32);
  return levels(resized, 32);
}

async function predict() {
  const image = pixels();
  if (!image || !network) return;
  const outputs = await network.session.run({ images: new network.Tensor("float32", image, [1, 1, 32, 32]) });
  const [probs, epistemic, aleatoric] = ["probs", "epistemic", "aleatoric"].map((name) => outputs[name].data);
  const digit = probs.indexOf(Math.max(...probs));
  const entropy = epistemic[0] + aleatoric[0];
  answer.textContent = entropy > network.threshold ? "unsure" : `${digit}`;
  bars.forEach((bar, index) => (bar.style.width = `${100 * probs[index]}%`));
  const [chance, total, part] = [probs[digit], entropy, epistemic[0]].map((value) => value.toFixed(3));
  detail.textContent = `${digit} with probability ${chance}; entropy ${total} nats, of which ${part} epistemic`;
}

function clear() {
  ink.clearRect(0, 0, canvas.width, canvas.height);
  bars.forEach((bar) => (bar.style.width = 0));
  answer.textContent = "Draw a digit.";
  detail.textContent = "";
}

function place(event) {
  const frame = canvas.getBoundingClientRect();
  return [(event.clientX - frame.left) * (canvas.width / frame.width), (event.clientY - frame.top) * (canvas.height / frame.height)];
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
});
canvas.addEventListener("pointermove", (event) => {
  if (!last) return;
  const next = place(event);
  Object.assign(ink, { lineWidth: 22, lineCap: "round", lineJoin: "round" });
  ink.beginPath();
  ink.moveTo(...last);
  ink.lineTo(...next);
  ink.stroke();
  last = next;
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, () => {
    last = null;
    predict();
  });
}
root.querySelector("button").addEventListener("click", clear);

try {
  const ort = await import(`${here}ort/ort.wasm.min.mjs`);
  Object.assign(ort.env.wasm, { wasmPaths: `${here}ort/`, numThreads: 1 });
  const { threshold } = await (await fetch(`${here}network.json`)).json();
  const session = await ort.InferenceSession.create(`${here}network.onnx`);
  network = { session, threshold, Tensor: ort.Tensor };
  clear();
} catch (error) {
  answer.textContent = `The network cannot be loaded: ${error.message}`;
}
