// Hono's `jwt` middleware in front of an answer that names the user, as `/v1/authorize` does.
// The key is imported once: given as text, Hono imports it for every request, and a peer is measured at its best.
import { Hono } from "hono";
import { jwt } from "hono/jwt";

const app = new Hono();
let check;

app.use("*", async (c, next) => {
	check ??= jwt({ secret: await importKey(c.env), alg: "HS256", verification: verification(c.env) });
	return check(c, next);
});

app.all("*", (c) => {
	c.header("x-user", c.get("jwtPayload").sub);
	return c.body(null, 200);
});

function importKey(env) {
	const secret = new TextEncoder().encode(env.SECRET);
	return crypto.subtle.importKey("raw", secret, { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
}

function verification(env) {
	return { iss: env.ISSUER, aud: env.AUDIENCE, typ: "at+jwt" };
}

export default app;
