// SPDX-License-Identifier: Apache-2.0
// Continues token ids with onnxruntime-web (WASM) under Node: node generate.js FOLDER COUNT ID...
// It knows no BCQ operator: the functions inside the file do the work. Prints JSON: ids, load_ms, first_ms, rss_mb.
const fs = require('fs');
const path = require('path');
const ort = require('onnxruntime-web');

const TYPES = {float32: Float32Array, float16: Uint16Array};

function integers(values) {
  return new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
}

// Keys and values of a text that has not begun.
function nothing(input) {
  return new ort.Tensor(input.type, new TYPES[input.type](0), [1, input.shape[1], 0, input.shape[3]]);
}

async function open(folder) {
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = 'error';
  const name = 'model.onnx.data';
  const data = fs.readFileSync(path.join(folder, name));
  return ort.InferenceSession.create(fs.readFileSync(path.join(folder, 'model.onnx')),
                                     {executionProviders: ['wasm'], logSeverityLevel: 3, externalData: [{path: name, data}]});
}

async function main(folder, count, ...prompt) {
  const started = performance.now();
  const session = await open(folder);
  const loaded = performance.now();
  let first = 0;
  const inputs = new Map(session.inputMetadata.map((input) => [input.name, input]));
  const past = {};
  for (const [name, input] of inputs) {
    if (name.startsWith('past_key_values.')) past[name] = nothing(input);
  }
  let fresh = prompt.map(Number);
  const ids = [...fresh];
  while (ids.length < prompt.length + Number(count)) {
    const feeds = {input_ids: integers(fresh), attention_mask: integers(ids.map(() => 1)), ...past};
    if (inputs.has('position_ids')) feeds.position_ids = integers(fresh.map((_, i) => ids.length - fresh.length + i));
    const results = await session.run(feeds);
    first = first || performance.now() - loaded;
    const [, rows, vocabulary] = results.logits.dims;
    const last = results.logits.data.subarray((rows - 1) * vocabulary);
    fresh = [last.indexOf(last.reduce((a, b) => Math.max(a, b)))];
    ids.push(fresh[0]);
    for (const name of Object.keys(past)) past[name] = results[name.replace('past_key_values', 'present')];
  }
  console.log(JSON.stringify({
    ids: ids.slice(prompt.length),
    load_ms: Math.round(loaded - started),
    first_ms: Math.round(first),
    rss_mb: Math.round(process.memoryUsage().rss / 1e6),
  }));
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(String(error));
  process.exit(1);
});
