//! How near numbers are to others.

use std::fmt;

/// The worst of all rows compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Agreement {
    pub(super) rows: usize,
    pub(super) max_abs: f64,
    pub(super) relative_l2: f64,
    pub(super) cosine: f64,
}

impl Agreement {
    pub(super) const NOTHING: Self = Self { rows: 0, max_abs: 0.0, relative_l2: 0.0, cosine: 1.0 };

    /// Counts one row; a NaN counts as far away.
    pub(super) fn add(&mut self, got: &[f32], expected: impl IntoIterator<Item = f64>) {
        let (mut difference, mut norm, mut expected_norm, mut product, mut max_abs) =
            (0.0, 0.0, 0.0, 0.0, 0.0f64);
        for (&got, expected) in got.iter().zip(expected) {
            let got = f64::from(got);
            let apart = (got - expected).abs();
            max_abs = if apart.is_nan() { f64::INFINITY } else { max_abs.max(apart) };
            difference += apart * apart;
            norm += got * got;
            expected_norm += expected * expected;
            product += got * expected;
        }
        let or = |value: f64, otherwise: f64| if value.is_finite() { value } else { otherwise };
        self.rows += 1;
        self.max_abs = self.max_abs.max(max_abs);
        self.relative_l2 = self.relative_l2.max(or((difference / expected_norm).sqrt(), f64::INFINITY));
        self.cosine = self.cosine.min(or(product / (norm * expected_norm).sqrt(), -1.0));
    }

    /// Compares [rows, width] with [rows, width].
    pub(super) fn of(got: &[f32], expected: &[f32], width: usize) -> Self {
        let mut agreement = Self::NOTHING;
        if got.len() != expected.len() {
            return Self { rows: 0, max_abs: f64::INFINITY, relative_l2: f64::INFINITY, cosine: -1.0 };
        }
        for (got, expected) in got.chunks_exact(width).zip(expected.chunks_exact(width)) {
            agreement.add(got, expected.iter().map(|&expected| f64::from(expected)));
        }
        agreement
    }

    /// The agreement in words if it is within the limits, else what is beyond them.
    pub(super) fn held_to(self, limits: Limits) -> Result<String, String> {
        let text = format!("{self} (allowed {limits})");
        let within = self.rows > 0
            && self.max_abs <= limits.max_abs
            && self.relative_l2 <= limits.rel_l2
            && self.cosine >= limits.min_cos;
        if within { Ok(text) } else { Err(text) }
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, max_abs, relative_l2, cosine } = self;
        write!(
            f,
            "{rows} rows: max abs {max_abs:.1e}, relative L2 {relative_l2:.1e}, 1 - cosine {:.1e}",
            1.0 - cosine
        )
    }
}

/// How far apart two rows may be.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize)]
pub(super) struct Limits {
    pub(super) rel_l2: f64,
    pub(super) max_abs: f64,
    pub(super) min_cos: f64,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0e}, {:.0e}, {:.1e}", self.max_abs, self.rel_l2, 1.0 - self.min_cos)
    }
}

/// Floats as bits: equality that knows no tolerance.
pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { rel_l2: 1e-5, max_abs: 5e-5, min_cos: 0.999_999_9 };

    #[test]
    fn what_is_apart_is_refused() {
        let row = [1.0f32, -2.0, 3.0];
        assert!(Agreement::of(&row, &row, 3).held_to(LIMITS).is_ok());
        for other in [[1.0, -2.0, 3.001], [1.0, -2.0, f32::NAN], [0.0; 3], [f32::INFINITY, -2.0, 3.0]] {
            assert!(Agreement::of(&other, &row, 3).held_to(LIMITS).is_err(), "{other:?}");
        }
        // One good row does not make up for a bad one, nothing compared is no agreement.
        assert!(Agreement::of(&[1.0, 2.0, 1.0, 9.0], &[1.0, 2.0, 1.0, 2.0], 2).held_to(LIMITS).is_err());
        assert!(Agreement::NOTHING.held_to(LIMITS).is_err());
        assert!(Agreement::of(&row, &row[..2], 1).held_to(LIMITS).is_err());
    }
}
