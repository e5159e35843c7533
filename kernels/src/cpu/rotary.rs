//! Rotary position embedding: the angles of every position, for attention in f32 and in bf16.

/// Cosine and sine of every rotary angle: [positions, head width / 2] each.
///
/// Frequencies are rounded to f32 as in the published checkpoints; angles are computed in f64,
/// since f32 would lose three digits at position 1,000.
#[derive(Default)]
pub(super) struct Rotary {
    frequencies: Vec<f32>,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rotary {
    pub(super) fn new(head_width: usize) -> Self {
        Self { frequencies: rotary_frequencies(head_width), ..Self::default() }
    }

    /// Makes angles of `positions` positions available.
    pub(super) fn reserve(&mut self, positions: usize) {
        let pairs = self.frequencies.len();
        for position in self.cosines.len() / pairs..positions {
            for frequency in &self.frequencies {
                let angle = position as f64 * f64::from(*frequency);
                self.cosines.push(angle.cos() as f32);
                self.sines.push(angle.sin() as f32);
            }
        }
    }

    /// Whether the angles of so many positions are there.
    pub(super) fn hold(&self, positions: usize) -> bool {
        self.cosines.len() >= positions * self.frequencies.len()
    }

    /// Cosines and sines at a position.
    #[inline(always)]
    pub(super) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let pairs = self.frequencies.len();
        let range = position * pairs..(position + 1) * pairs;
        (&self.cosines[range.clone()], &self.sines[range])
    }

    /// Rotates the head `x` of the token at `position`, times `scale`, into `out`.
    #[inline(always)]
    pub(super) fn rotate(&self, x: &[f32], position: usize, scale: f32, out: &mut [f32]) {
        let pairs = self.frequencies.len();
        let angles = self.at(position);
        let (first, second) = x.split_at(pairs);
        let (first_out, second_out) = out.split_at_mut(pairs);
        // Published heads have 8, 12, 16, 32 or 64 pairs. Arrays of a known length become vectors,
        // whereas masked loads of a vector's part are slow function calls.
        let done = turn::<8>([first, second], angles, scale, first_out, second_out, 0);
        let done = turn::<4>([first, second], angles, scale, first_out, second_out, done);
        turn::<1>([first, second], angles, scale, first_out, second_out, done);
    }
}

/// Turns as many of the pairs from `at` on as make whole arrays of `N`; returns where it stopped.
#[inline(always)]
fn turn<const N: usize>(
    [first, second]: [&[f32]; 2],
    (cosines, sines): (&[f32], &[f32]),
    scale: f32,
    first_out: &mut [f32],
    second_out: &mut [f32],
    at: usize,
) -> usize {
    let inputs = first[at..].as_chunks::<N>().0.iter().zip(second[at..].as_chunks::<N>().0);
    let angles = cosines[at..].as_chunks::<N>().0.iter().zip(sines[at..].as_chunks::<N>().0);
    let first_out = first_out[at..].as_chunks_mut::<N>().0;
    let outs = first_out.iter_mut().zip(second_out[at..].as_chunks_mut::<N>().0);
    let mut done = at;
    for (((a, b), (cosine, sine)), (first, second)) in inputs.zip(angles).zip(outs) {
        // Whole arrays are stored: the compiler cannot tell that the outputs do not overlap the inputs.
        let mut turned = [[0.0; N]; 2];
        for lane in 0..N {
            turned[0][lane] = (a[lane] * cosine[lane] - b[lane] * sine[lane]) * scale;
            turned[1][lane] = (b[lane] * cosine[lane] + a[lane] * sine[lane]) * scale;
        }
        [*first, *second] = turned;
        done += N;
    }
    done
}

/// `10000 ^ (-2 i / head_width)` for each pair i, with the roundings of the reference's f32 code.
pub(super) fn rotary_frequencies(head_width: usize) -> Vec<f32> {
    (0..head_width / 2)
        .map(|pair| {
            let exponent = (2 * pair) as f32 / head_width as f32;
            1.0 / (10_000f64.powf(f64::from(exponent)) as f32)
        })
        .collect()
}
