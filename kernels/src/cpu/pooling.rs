//! Pools the residues of one sequence.

use crate::Pooling;

/// Pools a sequence's rows, BOS first, into `out`.
///
/// `x`: [tokens, width]. `residues`: how many leading residues count. `out`: [1, width], or
/// [residues, width] without pooling. Sums are kept in f64, so that a protein of thousands of
/// residues loses nothing.
pub(super) fn pool(pooling: Pooling, x: &[f32], width: usize, residues: usize, out: &mut [f32]) {
    let rows = &x[width..(1 + residues) * width];
    match pooling {
        Pooling::Mean => {
            let mut sums = vec![0.0f64; width];
            for row in rows.chunks_exact(width) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += f64::from(*value);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = (sum / residues as f64) as f32;
            }
        }
        Pooling::Bos => out.copy_from_slice(&x[..width]),
        Pooling::Max => {
            out.copy_from_slice(&rows[..width]);
            for row in rows.chunks_exact(width).skip(1) {
                for (out, value) in out.iter_mut().zip(row) {
                    // NaN wins, so that it is seen and reported.
                    if *value > *out || value.is_nan() {
                        *out = *value;
                    }
                }
            }
        }
        Pooling::None => out.copy_from_slice(rows),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BOS, three residues, EOS; width 2.
    const X: [f32; 10] = [9.0, -9.0, 1.0, -2.0, 3.0, -4.0, 8.0, 7.0, 99.0, 99.0];

    #[test]
    fn bos_and_eos_take_no_part() {
        let pooled = |pooling, residues, rows: usize| {
            let mut out = vec![0.0; 2 * rows];
            pool(pooling, &X, 2, residues, &mut out);
            out
        };
        assert_eq!(pooled(Pooling::Mean, 3, 1), [4.0, 1.0 / 3.0]);
        assert_eq!(pooled(Pooling::Mean, 2, 1), [2.0, -3.0]);
        assert_eq!(pooled(Pooling::Max, 3, 1), [8.0, 7.0]);
        assert_eq!(pooled(Pooling::Max, 2, 1), [3.0, -2.0]);
        assert_eq!(pooled(Pooling::Bos, 3, 1), [9.0, -9.0]);
        assert_eq!(pooled(Pooling::None, 2, 2), [1.0, -2.0, 3.0, -4.0]);
    }

    #[test]
    fn nan_survives_the_maximum() {
        for place in [2, 4, 6] {
            let mut x = X;
            x[place] = f32::NAN;
            let mut out = [0.0; 2];
            pool(Pooling::Max, &x, 2, 3, &mut out);
            assert!(out[0].is_nan(), "{out:?}");
        }
    }
}
