// The Node side of a context, as it runs inside a sandbox; python_runner.py says what passes here.
"use strict";
const fs = require("fs");
const repl = require("repl");
const readline = require("readline");
const { PassThrough } = require("stream");
const util = require("util");

const token = process.argv[process.argv.length - 1];
const PAYLOAD_MAX = 4000;

function write(fd, data) {
  for (let at = 0; at < data.length; ) {
    try {
      at += fs.writeSync(fd, data, at);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
}

function send(fd, kind, message) {
  const raw = Buffer.from(JSON.stringify(message));
  for (let n = 0, at = 0; at === 0 || at < raw.length; n++, at += PAYLOAD_MAX) {
    const part = raw.subarray(at, at + PAYLOAD_MAX);
    const more = at + PAYLOAD_MAX < raw.length ? "+" : ".";
    const hex = (value) => value.toString(16).padStart(4, "0");
    write(fd, Buffer.concat([Buffer.from(`\x1eisobox:${token}${kind}${hex(n)}${more}${hex(part.length)}`), part]));
  }
}

// What the code prints goes out at once and in order: frames must not overtake it.
for (const [fd, stream] of [[1, process.stdout], [2, process.stderr]]) {
  stream._write = (chunk, encoding, done) => { write(fd, Buffer.from(chunk, encoding)); done(); };
  stream._writev = null;
}

const requests = readline.createInterface({ input: fs.createReadStream(null, { fd: 0, autoClose: false }) });
const sink = new PassThrough();
sink.resume();
const server = repl.start({ input: new PassThrough(), output: sink, prompt: "", terminal: false, useGlobal: true, ignoreUndefined: true });
server.context.require = require("module").createRequire(process.cwd() + "/");

// What the code throws comes here rather than to eval's callback.
server._domain.removeAllListeners("error");
server._domain.on("error", (error) => interrupt && interrupt(error));

function plain(value) {
  try {
    return value !== null && typeof value === "object" ? JSON.parse(JSON.stringify(value)) : undefined;
  } catch {
    return undefined;
  }
}

function show(value) {
  const bundle = { "text/plain": util.inspect(value, { depth: 6 }) };
  const json = plain(value);
  if (json !== undefined) bundle["application/json"] = json;
  send(1, "R", bundle);
}

// In a copy of this sandbox: OpenSSL's generator takes new entropy, randomUUID comes to the end of those that it has
// drawn beforehand (128, lib/internal/crypto/random.js), and V8's generator, which cannot be seeded, is replaced.
function reseed() {
  const crypto = require("crypto");
  const addOn = { exports: {} };
  process.dlopen(addOn, "/.isobox/reseed");
  if (addOn.exports !== 1) throw new Error("OpenSSL's generator of random numbers cannot be seeded anew");
  for (let n = 0; n < 128; n++) crypto.randomUUID();
  const drawn = new BigUint64Array(128);
  let next = drawn.length;
  Math.random = function random() {
    if (next === drawn.length) crypto.randomFillSync(drawn), (next = 0);
    return Number(drawn[next++] >> 11n) / 2 ** 53;
  };
}

let interrupt = null;
process.on("SIGINT", () => interrupt && interrupt(new Error("interrupted")));

async function run(request) {
  if (request.warm) return send(1, "W", null);
  let ok = true;
  try {
    if (request.seed) reseed();
    const value = await new Promise((resolve, reject) => {
      interrupt = reject;
      server.eval(request.code, server.context, `<cell ${request.run}>`, (error, result) => (error ? reject(error) : resolve(result)));
    });
    if (value !== undefined) show(value);
  } catch (error) {
    ok = false;
    const text = error && error.stack ? error.stack : `Uncaught ${util.inspect(error)}`;
    write(2, Buffer.from(`${text}\n\nNode.js ${process.version}\n`));
  } finally {
    interrupt = null;
  }
  send(2, "D", { run: request.run });
  send(1, "D", { run: request.run, ok });
}

send(1, "S", { node: process.version });
let queue = Promise.resolve();
requests.on("line", (line) => { queue = queue.then(() => run(JSON.parse(line))); });
requests.on("close", () => process.exit(0));
