// Stands behind the KV and Analytics Engine bindings of our Worker in `cargo xtask bench edge`: nothing is ever found
// and everything is taken. A `token` route reads no KV, so neither is on the measured path.
export default {
	async fetch(request) {
		// A body that nobody reads is a lost connection to the one who sends it.
		await request.arrayBuffer();
		return new Response(null, { status: request.method === "GET" ? 404 : 200 });
	},
};
