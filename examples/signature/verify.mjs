// Checks that a request came through Edgekeep: the header x-edgekeep-signature (docs/origins.md).
//
// Import `verify`, or try it with a request's head on standard input and the key in EDGEKEEP_ORIGIN_KEY. Needs nothing
// but Node's own modules.
import { createHmac, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const SIGNATURE = /^t=([0-9]{1,12}),v1=([0-9a-f]{64})$/;

// Null when the signature is good, otherwise why it is not.
//
// path: as it stands in the request line, without the query and not decoded. headers: pairs of name and value, as
// `request.rawHeaders` has them one after the other; a name that stands twice is refused. maxAge: seconds a request may
// be old, which is for how long a copy of it is good too.
export function verify(key, method, path, headers, maxAge = 60, now = Date.now() / 1000) {
  const values = new Map();
  for (const [name, value] of headers) {
    const lower = name.toLowerCase();
    if (!lower.startsWith("x-edgekeep-")) continue;
    if (values.has(lower)) return `${lower} stands twice`;
    values.set(lower, value.trim());
  }
  const found = SIGNATURE.exec(values.get("x-edgekeep-signature") ?? "");
  if (!found) return "no signature of the form t=…,v1=…";
  const [, issued, tag] = found;
  const identity = ["user", "session", "shard"].map((name) => values.get(`x-edgekeep-${name}`) ?? "");
  const expected = createHmac("sha256", key).update([issued, method, path, ...identity].join("\n")).digest();
  if (!timingSafeEqual(expected, Buffer.from(tag, "hex"))) return "the signature is not of this request, or of another key";
  // Clocks differ a little: neither much too old nor from the future.
  if (Math.abs(now - Number(issued)) > maxAge) return `older than ${maxAge} s`;
  return null;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const head = readFileSync(0, "utf8").split("\r\n\r\n", 1)[0];
  const [first, ...lines] = head.split("\r\n");
  const [method, target] = first.split(" ");
  const headers = lines.map((line) => {
    const colon = line.indexOf(":");
    return [line.slice(0, colon), line.slice(colon + 1)];
  });
  const why = verify(process.env.EDGEKEEP_ORIGIN_KEY, method, target.split("?", 1)[0], headers, Number(process.env.MAX_AGE ?? 60));
  console.log(why === null ? "accepted" : `refused: ${why}`);
  process.exitCode = why === null ? 0 : 1;
}
