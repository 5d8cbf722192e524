// Trains what export.py wrote in JavaScript, with onnxruntime-node or onnxruntime-web; see there.
"use strict";

const fs = require("node:fs");
const path = require("node:path");

const BATCH = 32, EPOCHS = 3, RATE = 0.003, HELD = 297, PIXELS = 28 * 28;

function runtime(name) {
  const ort = require(name);
  if (name === "onnxruntime-web") ort.env.wasm.numThreads = 1;
  return ort;
}

async function main(folder, name) {
  const ort = runtime(name);
  const read = (name) => fs.readFileSync(path.join(folder, name));
  const about = JSON.parse(read("step.json"));
  const array = (Kind, bytes) => new Kind(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  const images = array(Float32Array, read("images.bin"));
  const labels = array(BigInt64Array, read("labels.bin"));
  const open = (name) => ort.InferenceSession.create(new Uint8Array(read(name)));
  const session = await open("step.onnx");
  const [scores, target] = Object.entries(about.targets)[0];
  let state = await (await open("state.onnx")).run({});

  const run = (start, stop, step) => session.run({
    [about.inputs[0]]: new ort.Tensor(
      "float32", images.slice(start * PIXELS, stop * PIXELS), [stop - start, 1, 28, 28]),
    [target]: new ort.Tensor("int64", labels.slice(start, stop), [stop - start]),
    [about.learning_rate]: new ort.Tensor("float32", [RATE], []),
    [about.step]: new ort.Tensor("int64", [BigInt(step)], []),
    ...state,
  });

  const count = labels.length - HELD;
  let step = 0;
  for (let epoch = 1; epoch <= EPOCHS; epoch++) {
    let sum = 0, batches = 0;
    for (let start = 0; start < count; start += BATCH) {
      const results = await run(start, Math.min(start + BATCH, count), step++);
      // the outputs of one step are the state of the next
      state = Object.fromEntries(Object.entries(about.bindings).map(([name, output]) => [name, results[output]]));
      sum += results[about.loss].data[0];
      batches++;
    }
    console.log(`epoch ${epoch} loss ${(sum / batches).toFixed(4)}`);
  }
  const found = (await run(count, labels.length, step))[scores];
  let right = 0;
  for (let row = 0; row < HELD; row++) {
    const line = Array.from(found.data.slice(row * 10, row * 10 + 10));
    right += line.indexOf(Math.max(...line)) === Number(labels[count + row]);
  }
  console.log(`accuracy ${(right / HELD).toFixed(4)}`);
}

main(process.argv[2] ?? "build/in_onnxruntime", process.argv[3] ?? "onnxruntime-node").catch((error) => {
  console.error(error.message);
  process.exit(1);
});
