//! Chance, handed in: one ChaCha20 stream that a shell seeds once from the system (one per core natively, one per
//! isolate at the edge) and a test seeds with a printed number.

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

/// A cryptographically secure stream. Not `Sync`: each core owns one.
pub struct Entropy(ChaCha20Rng);

impl Entropy {
    /// From 32 bytes of the system's randomness.
    pub fn from_seed(seed: [u8; 32]) -> Entropy {
        Entropy(ChaCha20Rng::from_seed(seed))
    }

    /// A reproducible stream for tests and simulations; never for keys.
    pub fn for_tests(seed: u64) -> Entropy {
        Entropy(ChaCha20Rng::seed_from_u64(seed))
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.0.fill_bytes(&mut out);
        out
    }

    /// Uniform in `0..bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // Multiply-shift keeps the bias under 2⁻⁶⁴·bound, which nothing here can notice.
        ((u128::from(self.0.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Uniform in `(0, 1]`, never 0, so that its logarithm is finite.
    pub fn unit(&mut self) -> f64 {
        ((self.0.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn one_seed_gives_one_stream_on_every_platform() {
        assert_eq!(Entropy::for_tests(7).next_u64(), Entropy::for_tests(7).next_u64());
        // The keystream of ChaCha20 under a zero key (RFC 8439 A.1, first eight bytes).
        assert_eq!(Entropy::from_seed([0; 32]).next_u64(), 0x903d_f1a0_ade0_b876);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_unit_draw_is_never_zero_and_at_most_one() {
        let mut entropy = Entropy::for_tests(1);
        for _ in 0..1000 {
            let draw = entropy.unit();
            assert!(draw > 0.0 && draw <= 1.0);
        }
    }
}
