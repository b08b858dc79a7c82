// The floor under every Worker of `cargo xtask bench edge`: what workerd itself costs.
export default {
	fetch() {
		return new Response(null, { status: 200 });
	},
};
