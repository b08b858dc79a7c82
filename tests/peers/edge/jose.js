// jose's `jwtVerify` in a plain Worker; the answer names the user, as `/v1/authorize` does. The key is imported once.
import { jwtVerify } from "jose";

let key;

export default {
	async fetch(request, env) {
		const authorization = request.headers.get("authorization") ?? "";
		if (!authorization.startsWith("Bearer ")) {
			return new Response(null, { status: 401 });
		}
		key ??= await importKey(env);
		try {
			const { payload } = await jwtVerify(authorization.slice("Bearer ".length), key, {
				algorithms: ["HS256"],
				issuer: env.ISSUER,
				audience: env.AUDIENCE,
				typ: "at+jwt",
				requiredClaims: ["exp"],
			});
			return new Response(null, { status: 200, headers: { "x-user": payload.sub } });
		} catch {
			return new Response(null, { status: 401 });
		}
	},
};

function importKey(env) {
	const secret = new TextEncoder().encode(env.SECRET);
	return crypto.subtle.importKey("raw", secret, { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
}
