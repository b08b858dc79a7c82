// Stands behind the KV and Analytics Engine bindings of our Worker in `cargo xtask bench edge`: nothing is ever found
// and everything is taken. A `token` route reads no KV, so neither is on the measured path.
export default {
	fetch(request) {
		return new Response(null, { status: request.method === "GET" ? 404 : 200 });
	},
};
