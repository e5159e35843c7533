//! The rows of a linear layer's weights, of which several layers may be stacked, on their way into panels.

use crate::model::Tensor;
use crate::ops::LinearRows;

/// A row of weights: the tensor that holds it, and where it begins there.
pub(super) type Row<'a> = (&'a Tensor<'a>, usize);

/// Outputs of all parts.
pub(super) fn outputs(parts: &[LinearRows<'_>]) -> usize {
    parts.iter().map(|part| part.bias.len()).sum()
}

/// The rows of all parts ([outputs, inputs] each), and their biases into `bias`; `None` when memory is short.
pub(super) fn rows<'a>(parts: &'a [LinearRows<'a>], inputs: usize, bias: &mut [f32]) -> Option<Vec<Row<'a>>> {
    let mut rows: Vec<Row<'a>> = Vec::new();
    rows.try_reserve_exact(outputs(parts)).ok()?;
    for part in parts {
        part.bias.read(0, &mut bias[rows.len()..][..part.bias.len()]);
        rows.extend((0..part.bias.len()).map(|row| (&part.weight, row * inputs)));
    }
    Some(rows)
}
