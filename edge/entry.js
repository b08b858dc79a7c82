// The Worker's entry. It owns the request and the response, and moves text between them and the wasm module; every
// rule is in Rust (the text's form: edge/src/wire.rs, the calls: edge/src/lib.rs). The common path makes one synchronous
// call before `fetch` and one after it, and copies only the headers that Rust names.
import { afterwards, answered, begin, body, failed, gone, proceed, ready, start } from "edgekeep";
import config from "./config.json";

let requestNames = [];
let responseNames = [];

export default {
  async fetch(request, env, ctx) {
    try {
      return await exchange(request, env, ctx);
    } catch (error) {
      return internalError(error);
    }
  },
};

async function exchange(request, env, ctx) {
  // A new isolate, or a new instance after a trap.
  if (!ready()) {
    // A binding may hold another configuration than the one that was built in.
    [requestNames, responseNames] = start(env, env.EDGEKEEP_CONFIG ?? config).split("\n").map((names) => names.split(","));
  }
  // The request's body as it is sent on, and whether it can be sent once more. The platform sends none with these two
  // methods: it would refuse the whole request, and the origin would seem to have failed.
  const sendable = request.method === "GET" || request.method === "HEAD" ? null : request.body;
  const sent = { body: sendable, again: sendable === null };
  let order = begin(headOf(request), Date.now());
  for (;;) {
    switch (order[0]) {
      case "F": {
        const outcome = await forward(order, request, sent, env, ctx);
        if (typeof outcome !== "string") return outcome;
        order = outcome;
        break;
      }
      case "R":
        return reply(order, env, ctx);
      case "P":
        order = await proceed(+order.slice(1));
        break;
      case "C": {
        const outcome = proceed(+order.slice(1));
        ctx.waitUntil(outcome.catch(() => {}));
        order = await outcome;
        break;
      }
      case "B": {
        const [number, limit] = order.slice(1).split(" ").map(Number);
        const outcome = await readWhole(read(request, limit));
        alive();
        order = outcome.isBroken ? gone(number, Date.now()) : body(number, outcome.bytes, Date.now());
        break;
      }
      default:
        throw new Error("no order came");
    }
  }
}

// The answer, or the next order.
async function forward(plan, request, sent, env, ctx) {
  const lines = plan.split("\n");
  const [number, timeout, buffer] = lines[0].slice(1).split(" ").map(Number);
  const headers = new Headers(request.headers);
  edit(headers, lines, 2);
  if (sent.body === null && request.body !== null) headers.delete("content-length");
  if (!sent.again && keeps(request, buffer)) {
    const outcome = await readWhole(request.arrayBuffer());
    if (outcome.isBroken) {
      alive();
      return gone(number, Date.now());
    }
    sent.body = outcome.bytes;
    sent.again = true;
  }

  // The limit is for the head only: a signal that fires later would cut the body.
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), timeout);
  let response;
  try {
    // One copy of the headers and none of the request; the body stays a stream of known length. Redirects belong to the
    // client, and Cloudflare's own cache knows nothing of users.
    response = await fetch(lines[1], {
      method: request.method,
      headers,
      body: sent.body,
      redirect: "manual",
      cache: "no-store",
      signal: abort.signal,
    });
  } catch (error) {
    if (!abort.signal.aborted) console.error(`origin: ${error}`);
    alive();
    return failed(number, abort.signal.aborted, sent.again, Date.now());
  } finally {
    clearTimeout(timer);
  }

  alive();
  const values = valuesOf(response.headers, responseNames) + cookiesOf(response.headers);
  const order = answered(number, response.status, values, sent.again, Date.now());
  if (order[0] === "E") return edited(response, order, env, ctx);
  // A body that nobody reads holds one of the few connections that a request may have open.
  ctx.waitUntil(Promise.resolve(response.body?.cancel()).catch(() => {}));
  return order;
}

// The origin's response, its head changed as Rust says. A fetched response's headers are immutable: the copy, made only
// when there is something to change, shares its body, its status and its WebSocket.
function edited(response, order, env, ctx) {
  const lines = order.split("\n");
  due(lines[0].slice(1), ctx);
  point(lines[1], response.status, env);
  if (!lines.some((line, at) => at > 1 && changes(response.headers, line))) return response;
  const copy = new Response(response.body, response);
  edit(copy.headers, lines, 2);
  return copy;
}

function reply(order, env, ctx) {
  const end = order.indexOf("\n\n");
  const lines = order.slice(1, end).split("\n");
  const [status, number] = lines[0].split(" ");
  due(number, ctx);
  point(lines[1], +status, env);
  const headers = new Headers();
  edit(headers, lines, 2);
  const text = order.slice(end + 2);
  return new Response(text === "" ? null : text, { status: +status, headers });
}

function due(number, ctx) {
  if (number !== "-") ctx.waitUntil(afterwards(+number));
}

// One data point an exchange: its route, its status, how long it took.
function point(text, status, env) {
  const space = text.indexOf(" ");
  env.POINTS?.writeDataPoint({ indexes: [text.slice(space + 1)], doubles: [status, +text.slice(0, space)] });
}

// Another request may have trapped meanwhile: this exchange went with the old instance.
function alive() {
  if (!ready()) throw new Error("the exchange went with its instance");
}

// A body of known length that is short enough to be kept.
function keeps(request, buffer) {
  const length = request.headers.get("content-length");
  return length !== null && +length <= buffer;
}

// What was read, or that the client's body broke off or was none: only that makes reading fail.
async function readWhole(reading) {
  try {
    return { isBroken: false, bytes: await reading };
  } catch {
    return { isBroken: true };
  }
}

// The whole body; undefined when it is longer than the limit.
async function read(request, limit) {
  const parts = [];
  let length = 0;
  for await (const part of request.body ?? []) {
    length += part.byteLength;
    if (length > limit) return undefined;
    parts.push(part);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

function headOf(request) {
  return `${request.method}\n${request.url}${valuesOf(request.headers, requestNames)}`;
}

function valuesOf(headers, names) {
  let values = "";
  for (const name of names) {
    const value = headers.get(name);
    values += value === null ? "\n" : `\n=${value}`;
  }
  return values;
}

function cookiesOf(headers) {
  let lines = "";
  for (const line of headers.getSetCookie()) lines += `\n${line}`;
  return lines;
}

// Whether an edit would change anything.
function changes(headers, line) {
  switch (line[0]) {
    case "-":
      return headers.has(line.slice(1));
    case "*":
      return namesFrom(headers, line.slice(1)).length > 0;
    default:
      return true;
  }
}

function edit(headers, lines, from) {
  for (let at = from; at < lines.length; at++) {
    const line = lines[at];
    const colon = line.indexOf(":");
    switch (line[0]) {
      case "=":
        headers.set(line.slice(1, colon), line.slice(colon + 1));
        break;
      case "+":
        headers.append(line.slice(1, colon), line.slice(colon + 1));
        break;
      case "-":
        headers.delete(line.slice(1));
        break;
      case "*":
        for (const name of namesFrom(headers, line.slice(1))) headers.delete(name);
        break;
    }
  }
}

function namesFrom(headers, prefix) {
  const names = [];
  for (const name of headers.keys()) {
    if (name[0] === prefix[0] && name.replaceAll("_", "-").startsWith(prefix)) names.push(name);
  }
  return names;
}

// A trap, a configuration or a binding that is wrong: the reason goes to the log, never to the client. The next call
// into the module gets a fresh instance.
function internalError(error) {
  console.error(error?.stack ?? error);
  const text = JSON.stringify({ type: "urn:edgekeep:problem:internal", title: "Internal error", status: 500, code: "internal" });
  return new Response(text, {
    status: 500,
    headers: { "content-type": "application/problem+json", "cache-control": "no-store" },
  });
}
