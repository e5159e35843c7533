//! What each kernel computes, as plain loops: the reference of the checks on a GPU.
//!
//! A twin takes what its kernel takes, slices for pointers, and does the same operations in the same
//! order. In f32 the results are meant to be equal bit for bit (a zero's sign apart). In f16 and bf16
//! the sums of the tensor cores have no stated order and the exponential is the device's approximation,
//! so that GELU and attention agree to a unit in the last place or two of the stored type.

use half::{bf16, f16};

use super::launch::{ROTATED_BEYOND, TILE_ROWS, tiles};
use super::sources::Number;
use crate::alphabet::MASK;
use crate::ops::dropout_scale;

const WARP: usize = 32;
const GROUP: usize = 8;

/// A number as the device stores it.
pub trait Stored: Copy {
    /// Its type.
    const NUMBER: Number;
    /// The unit in the last place of 1.
    const EPSILON: f32;

    /// Exactly this number.
    fn widen(self) -> f32;

    /// The nearest number, ties to even; infinity beyond the range.
    fn narrow(x: f32) -> Self;
}

impl Stored for f32 {
    const NUMBER: Number = Number::F32;
    const EPSILON: f32 = f32::EPSILON;

    fn widen(self) -> f32 {
        self
    }

    fn narrow(x: f32) -> Self {
        x
    }
}

impl Stored for f16 {
    const NUMBER: Number = Number::F16;
    const EPSILON: f32 = f16::EPSILON.to_f32_const();

    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }
}

impl Stored for bf16 {
    const NUMBER: Number = Number::Bf16;
    const EPSILON: f32 = bf16::EPSILON.to_f32_const();

    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// Sequences back to back, as kernels and twins take them.
#[derive(Clone, Debug)]
pub struct Packed {
    /// [sequences + 1].
    pub cu_seqlens: Vec<i32>,
    /// Of [`super::tiles`].
    pub tiles: Vec<[i32; 2]>,
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Tokens of the longest one.
    pub longest: usize,
}

impl Packed {
    /// Sequences of so many tokens each.
    pub fn new(lengths: &[usize]) -> Self {
        let mut limits = vec![0u32];
        limits.extend(lengths.iter().scan(0, |end, &length| {
            *end += length as u32;
            Some(*end)
        }));
        Self {
            cu_seqlens: limits.iter().map(|&limit| limit as i32).collect(),
            tiles: tiles(&limits),
            tokens: lengths.iter().sum(),
            longest: lengths.iter().copied().max().unwrap_or(0),
        }
    }
}

/// `embed_*`: looks up embeddings and scales them for token dropout.
///
/// `tokens`: [tokens]. `cu_seqlens`: [sequences + 1]. `tiles`: of [`super::tiles`].
/// `table`: [vocab, hidden]. `out`: [tokens, hidden].
pub fn embed<T: Stored, O: Stored>(
    tokens: &[u8],
    cu_seqlens: &[i32],
    tiles: &[[i32; 2]],
    table: &[T],
    out: &mut [O],
    hidden: usize,
    token_dropout: bool,
) {
    for tile in tiles {
        let (rows, sequence) = tile_rows(cu_seqlens, *tile);
        let scale = if token_dropout { dropout_scale(&tokens[sequence]) } else { 1.0 };
        for row in rows {
            let token = tokens[row];
            let embedding = &table[usize::from(token) * hidden..][..hidden];
            for (out, x) in out[row * hidden..][..hidden].iter_mut().zip(embedding) {
                let hide = token_dropout && token == MASK;
                *out = O::narrow(if hide { 0.0 } else { x.widen() * scale });
            }
        }
    }
}

/// The rows of the batch that a tile covers, and those of its sequence.
fn tile_rows(
    cu_seqlens: &[i32],
    [sequence, first]: [i32; 2],
) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let start = cu_seqlens[sequence as usize] as usize;
    let end = cu_seqlens[sequence as usize + 1] as usize;
    let first = start + first as usize;
    (first..end.min(first + TILE_ROWS), start..end)
}

/// `layer_norm_*`: normalises rows.
///
/// `x`, `out`: [rows, width]. `scale`, `shift`: [width].
pub fn layer_norm<X: Stored, O: Stored>(
    x: &[X],
    scale: &[f32],
    shift: &[f32],
    out: &mut [O],
    rows: usize,
    width: usize,
    eps: f32,
) {
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).take(rows) {
        let mean = warp_row_sum(x, |sum, value| sum + value) / width as f32;
        let squares = warp_row_sum(x, |sum, value| (value - mean).mul_add(value - mean, sum));
        let inverse = 1.0 / (squares / width as f32 + eps).sqrt();
        for (((out, x), scale), shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
            *out = O::narrow(((x.widen() - mean) * inverse).mul_add(*scale, *shift));
        }
    }
}

/// A row's sum by a warp whose lanes take groups of eight numbers in turn.
fn warp_row_sum<X: Stored>(x: &[X], add: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; WARP];
    for (group, values) in x.chunks(GROUP).enumerate() {
        let lane = &mut lanes[group % WARP];
        for value in values {
            *lane = add(*lane, value.widen());
        }
    }
    let mut distance = WARP / 2;
    while distance > 0 {
        let before = lanes;
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum = before[lane] + before[lane ^ distance];
        }
        distance /= 2;
    }
    lanes[0]
}

/// `exp(x)` for `x` ≤ 0, the f32 kernels' own; see `exp_exact` in `numbers.cuh`.
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const TERMS: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    if x.is_nan() {
        return x;
    }
    let x = if x < -87.0 { -87.0 } else { x };
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let power = rounded - ROUND;
    let r = power.mul_add(-0.693_359_4, x);
    let r = power.mul_add(2.121_944_4e-4, r);
    let mut sum = TERMS[0];
    for term in &TERMS[1..] {
        sum = sum.mul_add(r, *term);
    }
    f32::from_bits(sum.to_bits().wrapping_add(rounded.to_bits() << 23))
}

/// The exact GELU; see `gelu` in `epilogue.cu`.
///
/// Written apart from the CPU engine's, on purpose: each answers for the other.
fn gelu_of(x: f32) -> f32 {
    #[expect(clippy::excessive_precision, reason = "as printed by the fit")]
    const TERMS: [f32; 11] = [
        2.1008548234391355e-09,
        -7.616641539698321e-08,
        1.2266463045307319e-06,
        -1.1478879059723113e-05,
        6.716893403790891e-05,
        -0.00022539954807143658,
        4.211796840536408e-05,
        0.0047831847332417965,
        -0.03633701801300049,
        0.18169039487838745,
        -0.7978845834732056,
    ];
    let a = x.abs();
    let near = a.min(5.8);
    let mut sum = TERMS[0];
    for term in &TERMS[1..] {
        sum = sum.mul_add(near, *term);
    }
    let half_a = a * 0.5;
    let logarithm = sum * near - half_a * a;
    x.max(0.0) - half_a * exp(logarithm)
}

/// `gelu_*`: `x = gelu(x)`.
pub fn gelu<T: Stored>(x: &mut [T]) {
    for x in x {
        *x = T::narrow(gelu_of(x.widen()));
    }
}

/// `bias_*`: `x += bias`.
///
/// `x`: [rows, width]. `bias`: [width].
pub fn bias<T: Stored>(x: &mut [T], bias: &[T], width: usize) {
    for row in x.chunks_exact_mut(width) {
        for (x, bias) in row.iter_mut().zip(bias) {
            *x = T::narrow(x.widen() + bias.widen());
        }
    }
}

/// `bias_gelu_*`: `x = gelu(x + bias)`, the sum not rounded in between.
///
/// `x`: [rows, width]. `bias`: [width].
pub fn bias_gelu<T: Stored>(x: &mut [T], bias: &[T], width: usize) {
    for row in x.chunks_exact_mut(width) {
        for (x, bias) in row.iter_mut().zip(bias) {
            *x = T::narrow(gelu_of(x.widen() + bias.widen()));
        }
    }
}

/// `bias_residual_*`: `residual += product + bias`, rounded once.
///
/// `product`, `residual`: [rows, width]. `bias`: [width].
pub fn bias_residual<P: Stored, R: Stored>(product: &[P], bias: &[R], residual: &mut [R], width: usize) {
    for (product, residual) in product.chunks_exact(width).zip(residual.chunks_exact_mut(width)) {
        for ((product, bias), residual) in product.iter().zip(bias).zip(residual) {
            *residual = R::narrow(residual.widen() + (product.widen() + bias.widen()));
        }
    }
}

/// A batch's queries, keys and values as the attention kernels read them.
#[derive(Clone, Copy, Debug)]
pub struct Attend<'a, T> {
    /// [tokens, 3·hidden].
    pub qkv: &'a [T],
    /// [sequences + 1].
    pub cu_seqlens: &'a [i32],
    /// Of [`super::tiles`].
    pub tiles: &'a [[i32; 2]],
    /// Of [`super::rotary_angles`], at least as long as the longest sequence.
    pub cosines: &'a [f32],
    /// As `cosines`.
    pub sines: &'a [f32],
    /// Heads of `hidden / heads` columns.
    pub heads: usize,
    /// Of [`super::attention_scale`].
    pub scale: f32,
}

/// `rotate_keys_*`: rotates the keys of sequences longer than [`ROTATED_BEYOND`] in place.
///
/// `attend`: those of attention, of which `tiles` and `scale` are not used. `out`: as `attend.qkv`.
/// `head_width`: one of [`super::ROTARY_HEAD_WIDTHS`].
pub fn rotate_keys<T: Stored>(attend: Attend<'_, T>, head_width: usize, out: &mut [T]) {
    out.copy_from_slice(attend.qkv);
    let hidden = attend.heads * head_width;
    for limits in attend.cu_seqlens.windows(2) {
        let sequence = limits[0] as usize..limits[1] as usize;
        if sequence.len() <= ROTATED_BEYOND {
            continue;
        }
        for row in sequence.clone() {
            for head in 0..attend.heads {
                let rotated = attend.rotated_once(Part::Key, row, row - sequence.start, head, head_width);
                let at = (3 * row + 1) * hidden + head * head_width;
                for (out, x) in out[at..at + head_width].iter_mut().zip(rotated) {
                    *out = T::narrow(x);
                }
            }
        }
    }
}

/// `attention_*`: attends within each sequence. So does `attention_rotated_*`, on what `rotate_keys_*` has left.
///
/// `out`: [tokens, hidden]. `head_width`: one of [`super::ROTARY_HEAD_WIDTHS`].
pub fn attention<T: Stored>(attend: Attend<'_, T>, head_width: usize, out: &mut [T]) {
    for &tile in attend.tiles {
        for head in 0..attend.heads {
            match T::NUMBER {
                Number::F32 => attend.plain(tile, head, head_width, out),
                Number::F16 | Number::Bf16 => attend.tensor(tile, head, head_width, out),
            }
        }
    }
}

/// A query, key or value.
#[derive(Clone, Copy)]
enum Part {
    Query,
    Key,
    Value,
}

impl<T: Stored> Attend<'_, T> {
    /// The head's columns of a row of the batch.
    fn columns(&self, part: Part, row: usize, head: usize, width: usize) -> Vec<f32> {
        let hidden = self.heads * width;
        let at = (3 * row + part as usize) * hidden + head * width;
        self.qkv[at..at + width].iter().map(|x| x.widen()).collect()
    }

    /// The same, rotated to `position` of its sequence: `turn` makes a pair of columns from one and the angle's
    /// cosine and sine.
    fn turned(
        &self,
        part: Part,
        [row, position, head]: [usize; 3],
        width: usize,
        turn: impl Fn([f32; 2], [f32; 2]) -> [f32; 2],
    ) -> Vec<f32> {
        let x = self.columns(part, row, head, width);
        let pairs = width / 2;
        let mut turned = vec![0.0; width];
        for pair in 0..pairs {
            let angle = [self.cosines, self.sines].map(|angles| angles[position * pairs + pair]);
            [turned[pair], turned[pair + pairs]] = turn([x[pair], x[pair + pairs]], angle);
        }
        turned
    }

    /// Rotated in f32, each product and sum rounded.
    fn rotated(&self, part: Part, row: usize, position: usize, head: usize, width: usize) -> Vec<f32> {
        self.turned(part, [row, position, head], width, |[a, b], [cosine, sine]| {
            [a * cosine - b * sine, b * cosine + a * sine]
        })
    }

    /// `attend_plain` of `attention.cu`: 32 keys at a time, four threads to a query row.
    fn plain(&self, tile: [i32; 2], head: usize, width: usize, out: &mut [T]) {
        const KEYS: usize = 32;
        const THREADS: usize = 4;
        let step = if width.is_multiple_of(16) { 4 } else { 2 };
        let (rows, sequence) = tile_rows(self.cu_seqlens, tile);
        let keys: Vec<_> = sequence
            .clone()
            .map(|row| self.rotated(Part::Key, row, row - sequence.start, head, width))
            .collect();
        let values: Vec<_> =
            sequence.clone().map(|row| self.columns(Part::Value, row, head, width)).collect();
        let all_threads = |part: [f32; THREADS]| (part[0] + part[1]) + (part[2] + part[3]);
        for row in rows {
            let mut query = self.rotated(Part::Query, row, row - sequence.start, head, width);
            query.iter_mut().for_each(|x| *x *= self.scale);
            let mut sums = vec![0.0f32; width];
            let mut maximum = f32::NEG_INFINITY;
            let mut total = [0.0f32; THREADS];
            for (keys, values) in keys.chunks(KEYS).zip(values.chunks(KEYS)) {
                let mut weights: Vec<f32> = keys
                    .iter()
                    .map(|key| {
                        let mut products = [0.0f32; THREADS];
                        for (column, (q, k)) in query.iter().zip(key).enumerate() {
                            let thread = &mut products[column / step % THREADS];
                            *thread = q.mul_add(*k, *thread);
                        }
                        all_threads(products)
                    })
                    .collect();
                let highest = weights.iter().fold(maximum, |highest, &score| highest.max(score));
                let fade = exp(maximum - highest);
                maximum = highest;
                total.iter_mut().for_each(|total| *total *= fade);
                sums.iter_mut().for_each(|sum| *sum *= fade);
                for (key, (weight, value)) in weights.iter_mut().zip(values).enumerate() {
                    *weight = exp(*weight - maximum);
                    total[key % THREADS] += *weight;
                    for (sum, value) in sums.iter_mut().zip(value) {
                        *sum = weight.mul_add(*value, *sum);
                    }
                }
            }
            self.store(row, head, width, &sums, all_threads(total), out);
        }
    }

    /// Rotated by fused multiply-adds, rounded to T.
    fn rotated_once(&self, part: Part, row: usize, position: usize, head: usize, width: usize) -> Vec<f32> {
        self.turned(part, [row, position, head], width, |[a, b], [cosine, sine]| {
            [a.mul_add(cosine, -(b * sine)), b.mul_add(cosine, a * sine)].map(|x| T::narrow(x).widen())
        })
    }

    /// `attend_heads` of `attention.cu`: 32 keys at a time, 64 for narrow heads; rotated queries and keys and the
    /// weights are rounded to T, sums are f32.
    fn tensor(&self, tile: [i32; 2], head: usize, width: usize, out: &mut [T]) {
        let block = if width <= 32 { 64 } else { 32 };
        let (rows, sequence) = tile_rows(self.cu_seqlens, tile);
        let rotated = |part, row: usize| self.rotated_once(part, row, row - sequence.start, head, width);
        let keys: Vec<_> = sequence.clone().map(|row| rotated(Part::Key, row)).collect();
        let values: Vec<_> =
            sequence.clone().map(|row| self.columns(Part::Value, row, head, width)).collect();
        let scale_log2 = self.scale * std::f32::consts::LOG2_E;
        for row in rows {
            let query = rotated(Part::Query, row);
            let mut sums = vec![0.0f32; width];
            // The highest score so far, scaled.
            let mut peak = f32::NEG_INFINITY;
            let mut total = 0.0f32;
            for (keys, values) in keys.chunks(block).zip(values.chunks(block)) {
                let scores: Vec<f32> =
                    keys.iter().map(|key| query.iter().zip(key).map(|(q, k)| q * k).sum()).collect();
                let highest = scores.iter().fold(f32::NEG_INFINITY, |highest, &score| highest.max(score));
                let before = peak;
                peak = before.max(highest * scale_log2);
                let fade = (before - peak).exp2();
                total *= fade;
                sums.iter_mut().for_each(|sum| *sum *= fade);
                for (score, value) in scores.into_iter().zip(values) {
                    let weight = score.mul_add(scale_log2, -peak).exp2();
                    total += weight;
                    let weight = T::narrow(weight).widen();
                    for (sum, value) in sums.iter_mut().zip(value) {
                        *sum += weight * value;
                    }
                }
            }
            self.store(row, head, width, &sums, total, out);
        }
    }

    fn store(&self, row: usize, head: usize, width: usize, sums: &[f32], total: f32, out: &mut [T]) {
        let inverse = 1.0 / total;
        let at = row * self.heads * width + head * width;
        for (out, sum) in out[at..at + width].iter_mut().zip(sums) {
            *out = T::narrow(sum * inverse);
        }
    }
}

/// How the `pool_*` kernels are told what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum PoolMode {
    /// Mean of residues.
    Mean = 0,
    /// The BOS row.
    Bos = 1,
    /// Maximum of residues.
    Max = 2,
}

/// A sum and what rounding has added to it.
#[derive(Clone, Copy, Default)]
struct Sum {
    sum: f32,
    excess: f32,
}

impl Sum {
    fn add(&mut self, x: f32) {
        let corrected = x - self.excess;
        let next = self.sum + corrected;
        self.excess = (next - self.sum) - corrected;
        self.sum = next;
    }
}

/// `pool_*`: pools the residues of each sequence.
///
/// `x`: [tokens, width]. `cu_seqlens`: [sequences + 1]. `pooled`: [sequences], at least 1.
/// `out`: [sequences, width]. `flags`: [sequences], becomes 1 where the result is not finite.
pub fn pool<T: Stored>(
    x: &[T],
    cu_seqlens: &[i32],
    pooled: &[i32],
    mode: PoolMode,
    out: &mut [f32],
    flags: &mut [i32],
    width: usize,
) {
    const ROW_GROUPS: usize = 8;
    let larger = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
    for (sequence, &residues) in pooled.iter().enumerate() {
        let bos = cu_seqlens[sequence] as usize;
        let residues = residues as usize;
        for column in 0..width {
            let residue = |row: usize| x[(bos + 1 + row) * width + column].widen();
            let groups = 0..ROW_GROUPS.min(residues);
            let result = match mode {
                PoolMode::Mean => {
                    let mut total = Sum::default();
                    for group in groups {
                        let mut sum = Sum::default();
                        (group..residues).step_by(ROW_GROUPS).for_each(|row| sum.add(residue(row)));
                        total.add(sum.sum);
                    }
                    total.sum / residues as f32
                }
                PoolMode::Bos => x[bos * width + column].widen(),
                PoolMode::Max => groups
                    .map(|group| {
                        (group..residues)
                            .step_by(ROW_GROUPS)
                            .map(residue)
                            .reduce(larger)
                            .unwrap_or(f32::NEG_INFINITY)
                    })
                    .reduce(larger)
                    .unwrap_or(f32::NEG_INFINITY),
            };
            out[sequence * width + column] = result;
            flags[sequence] |= i32::from(!result.is_finite());
        }
    }
}

/// `gather_*`: copies the rows of residues, one after the other.
///
/// `x`: [tokens, width]. `cu_seqlens`: [sequences + 1]. `tiles`: of [`super::tiles`].
/// `pooled`: [sequences]. `rows_before`: [sequences], of [`super::rows_before`].
/// `out`: [sum of `pooled`, width]. `flags`: [sequences], becomes 1 where a row is not finite.
#[expect(clippy::too_many_arguments, reason = "the kernel's own parameters")]
pub fn gather<T: Stored>(
    x: &[T],
    cu_seqlens: &[i32],
    tiles: &[[i32; 2]],
    pooled: &[i32],
    rows_before: &[i32],
    out: &mut [f32],
    flags: &mut [i32],
    width: usize,
) {
    for &[sequence, first] in tiles {
        let sequence = sequence as usize;
        let residues = pooled[sequence] as usize;
        for row in first as usize..residues.min(first as usize + TILE_ROWS) {
            let from = cu_seqlens[sequence] as usize + 1 + row;
            let to = rows_before[sequence] as usize + row;
            for column in 0..width {
                let value = x[from * width + column].widen();
                out[to * width + column] = value;
                flags[sequence] |= i32::from(!value.is_finite());
            }
        }
    }
}

/// `convert_*`: `to = from`; whether a finite number became infinite.
pub fn convert<S: Stored, D: Stored>(from: &[S], to: &mut [D]) -> bool {
    let mut overflowed = false;
    for (from, to) in from.iter().zip(to) {
        *to = D::narrow(from.widen());
        overflowed |= from.widen().is_finite() && !to.widen().is_finite();
    }
    overflowed
}
