//! From the hidden states of one sequence to its embedding, on the host.

use crate::Pooling;

/// Appends a sequence's embedding to `out`.
///
/// `states`: [tokens, width], BOS first. `residues`: how many leading residues count. Sums are kept in f64.
pub(super) fn pool_into(pooling: Pooling, states: &[f32], width: usize, residues: usize, out: &mut Vec<f32>) {
    let column = |column: usize| (1..=residues).map(move |row| states[row * width + column]);
    match pooling {
        Pooling::Bos => out.extend_from_slice(&states[..width]),
        Pooling::None => out.extend_from_slice(&states[width..(1 + residues) * width]),
        Pooling::Mean => {
            out.extend((0..width).map(|c| (column(c).map(f64::from).sum::<f64>() / residues as f64) as f32))
        }
        // `f32::max` would pass over NaN, which must be seen.
        Pooling::Max => out.extend((0..width).map(|c| {
            column(c).fold(f32::NEG_INFINITY, |most, x| if x > most || x.is_nan() { x } else { most })
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BOS, three residues, EOS; width 2.
    const STATES: [f32; 10] = [9.0, -9.0, 1.0, -2.0, 3.0, -4.0, 8.0, 7.0, 99.0, 99.0];

    fn pooled(pooling: Pooling, states: &[f32], residues: usize) -> Vec<f32> {
        let mut out = vec![0.5];
        pool_into(pooling, states, 2, residues, &mut out);
        assert_eq!(out.remove(0), 0.5);
        out
    }

    #[test]
    fn bos_and_eos_take_no_part() {
        assert_eq!(pooled(Pooling::Mean, &STATES, 3), [4.0, 1.0 / 3.0]);
        assert_eq!(pooled(Pooling::Mean, &STATES, 2), [2.0, -3.0]);
        assert_eq!(pooled(Pooling::Max, &STATES, 3), [8.0, 7.0]);
        assert_eq!(pooled(Pooling::Max, &STATES, 2), [3.0, -2.0]);
        assert_eq!(pooled(Pooling::Bos, &STATES, 3), [9.0, -9.0]);
        assert_eq!(pooled(Pooling::None, &STATES, 2), [1.0, -2.0, 3.0, -4.0]);
    }

    #[test]
    fn nan_survives_every_pooling() {
        for place in [2, 4, 6] {
            let mut states = STATES;
            states[place] = f32::NAN;
            for pooling in [Pooling::Mean, Pooling::Max, Pooling::None] {
                assert!(pooled(pooling, &states, 3).iter().any(|x| x.is_nan()), "{pooling:?}, place {place}");
            }
        }
    }
}
