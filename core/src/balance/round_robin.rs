//! Smooth weighted round-robin, nginx's: every candidate gains its weight, the richest is picked and pays the sum.
//!
//! Over as many picks as the weights add up to, each origin gets exactly its weight, evenly strewn. One a core and
//! pool; nothing is shared, so nothing contends.

/// The accounts of one pool's origins, by their index. They sum to zero.
#[derive(Clone, Debug, Default)]
pub struct RoundRobin {
    accounts: Vec<i64>,
}

impl RoundRobin {
    pub(super) fn len(&self) -> usize {
        self.accounts.len()
    }

    /// Fits the accounts to a pool of `origins`; a pool of another size starts over.
    pub(super) fn fit(&mut self, origins: usize) {
        if self.accounts.len() != origins {
            self.accounts.clear();
            self.accounts.resize(origins, 0);
        }
    }

    /// Whose turn it is among the candidates (index, weight), and settles the accounts.
    pub(super) fn pick(&mut self, candidates: impl Iterator<Item = (usize, u64)> + Clone) -> Option<usize> {
        let picked = self.peek(candidates.clone())?;
        let mut sum = 0;
        for (index, weight) in candidates {
            let weight = weight.min(1 << 40) as i64;
            sum += weight;
            if let Some(account) = self.accounts.get_mut(index) {
                *account += weight;
            }
        }
        if let Some(account) = self.accounts.get_mut(picked) {
            *account -= sum;
        }
        Some(picked)
    }

    /// Whose turn it is, without taking it.
    pub(super) fn peek(&self, candidates: impl Iterator<Item = (usize, u64)>) -> Option<usize> {
        let mut best: Option<(i64, usize)> = None;
        for (index, weight) in candidates {
            let rich = self.accounts.get(index).copied().unwrap_or(0) + weight.min(1 << 40) as i64;
            // The first of equals wins.
            if best.is_none_or(|(most, _)| rich > most) {
                best = Some((rich, index));
            }
        }
        best.map(|(_, index)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    fn picks(round_robin: &mut RoundRobin, weights: &[u64], count: usize) -> Vec<usize> {
        round_robin.fit(weights.len());
        let candidates = || weights.iter().copied().enumerate();
        (0..count).map(|_| round_robin.pick(candidates()).unwrap()).collect()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn weights_5_1_1_give_nginxs_published_order() {
        // From the comment on smooth weighted round-robin in nginx's upstream_round_robin.
        assert_eq!(picks(&mut RoundRobin::default(), &[5, 1, 1], 7), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn every_round_gives_each_exactly_its_weight() {
        let (mut round_robin, weights) = (RoundRobin::default(), [1, 2, 3, 4]);
        for _ in 0..5 {
            let picks = picks(&mut round_robin, &weights, 10);
            for (index, weight) in weights.iter().enumerate() {
                assert_eq!(picks.iter().filter(|pick| **pick == index).count() as u64, *weight);
            }
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn accounts_sum_to_zero_and_start_over_when_the_pool_changes() {
        let mut round_robin = RoundRobin::default();
        picks(&mut round_robin, &[3, 1, 1], 4);
        assert_eq!(round_robin.accounts.iter().sum::<i64>(), 0);
        round_robin.fit(2);
        assert_eq!(round_robin.accounts, [0, 0]);
        assert_eq!(round_robin.pick(std::iter::empty()), None);
    }
}
