// The Worker's entry. It owns the request and the response, and moves text between them and the wasm module; every
// rule is in Rust (the text's form: edge/src/wire.rs, the calls: edge/src/lib.rs). The common path makes one synchronous
// call before `fetch` and one after it, and copies only the headers that Rust names.
import { afterwards, answered, begin, proceed, ready, start } from "edgekeep";

let requestNames = [];
let responseNames = [];

export default {
  async fetch(request, env, ctx) {
    try {
      return await exchange(request, env, ctx);
    } catch (error) {
      return failed(error);
    }
  },
};

function exchange(request, env, ctx) {
  // A new isolate, or a new instance after a trap.
  if (!ready()) {
    [requestNames, responseNames] = start(env).split("\n").map((names) => (names ? names.split(",") : []));
  }
  const plan = begin(headOf(request), Date.now());
  switch (plan[0]) {
    case "F":
      return forward(plan, request, env, ctx);
    case "R":
      return reply(plan);
    case "P":
      return proceed(+plan.slice(1), request, env, ctx, undefined);
    default:
      throw new Error("begin returned nothing");
  }
}

async function forward(plan, request, env, ctx) {
  const lines = plan.split("\n");
  const [number, timeout] = lines[0].slice(1).split(" ", 2).map(Number);
  const headers = new Headers(request.headers);
  edit(headers, lines, 2, lines.length);

  // The limit is for the head only: a signal that fires later would cut the body.
  const abort = timeout ? new AbortController() : undefined;
  const timer = timeout ? setTimeout(() => abort.abort(), timeout) : undefined;
  let response;
  try {
    // One copy of the headers and none of the request; the body stays a stream of known length. Redirects belong to the
    // client.
    response = await fetch(lines[1], {
      method: request.method,
      headers,
      body: request.body,
      redirect: "manual",
      signal: abort?.signal,
    });
  } catch (error) {
    return proceed(number, request, env, ctx, abort?.signal.aborted ? "timeout" : error);
  } finally {
    clearTimeout(timer);
  }

  // Not ready: another request trapped meanwhile, and this exchange went with the old instance; `proceed` says so.
  const edits = ready() ? answered(number, response.status, valuesOf(response.headers, responseNames), Date.now()) : "";
  if (edits === "") return proceed(number, request, env, ctx, response);
  if (edits[1] === "1") ctx.waitUntil(afterwards(number, env));
  if (edits.length === 2) return response;
  // A fetched response's headers are immutable; this one shares its body, its status and its WebSocket.
  const changed = new Response(response.body, response);
  const changes = edits.split("\n");
  edit(changed.headers, changes, 1, changes.length);
  return changed;
}

function reply(text) {
  const end = text.indexOf("\n\n");
  const lines = text.slice(1, end).split("\n");
  const headers = new Headers();
  edit(headers, lines, 1, lines.length);
  const body = text.slice(end + 2);
  return new Response(body === "" ? null : body, { status: +lines[0], headers });
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

function edit(headers, lines, from, to) {
  for (let at = from; at < to; at++) {
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
      case "*": {
        const prefix = line.slice(1);
        for (const name of [...headers.keys()]) if (name.startsWith(prefix)) headers.delete(name);
        break;
      }
    }
  }
}

// A trap, or a binding that is missing: the reason goes to the log, never to the client. The next call into the module
// gets a fresh instance.
function failed(error) {
  console.error(error?.stack ?? error);
  const body = JSON.stringify({ type: "about:blank", status: 500, code: "internal" });
  return new Response(body, {
    status: 500,
    headers: { "content-type": "application/problem+json", "cache-control": "no-store" },
  });
}
