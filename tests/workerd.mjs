// Runs the built Worker under workerd for the scenarios, as wrangler.toml says, with other bindings and without
// wrangler's own reloads. Reads one line of JSON {module, port, bindings} and ends when its standard input does.
import { readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { Log, LogLevel, Miniflare } from "miniflare";
import { unstable_getMiniflareWorkerOptions } from "wrangler";

const input = createInterface({ input: process.stdin });
const { module, port, bindings } = JSON.parse((await input[Symbol.asyncIterator]().next()).value);

const folder = dirname(module);
const wasm = readdirSync(folder).filter((name) => name.endsWith(".wasm"));
const { workerOptions } = unstable_getMiniflareWorkerOptions("wrangler.toml");
const miniflare = new Miniflare({
  ...workerOptions,
  name: "edgekeep",
  rootPath: folder,
  modulesRoot: folder,
  modules: [
    { type: "ESModule", path: module },
    ...wasm.map((name) => ({ type: "CompiledWasm", path: join(folder, name) })),
  ],
  // What wrangler.toml's own .dev.vars may hold is of no concern here.
  bindings,
  host: "127.0.0.1",
  port,
  cf: false,
  log: new Log(LogLevel.WARN),
  handleRuntimeStdio(stdout, stderr) {
    stdout.pipe(process.stdout);
    stderr.pipe(process.stderr);
  },
});
const url = await miniflare.ready;
console.log(`ready at ${url}`);

let ending;
const end = () => (ending ??= miniflare.dispose().finally(() => process.exit(0)));
process.on("SIGTERM", end);
process.on("SIGINT", end);
input.on("close", end);
// A closed pipe is seen only while it is read.
process.stdin.resume();
