//! Each kernel on the device against its twin on the CPU, on random shapes.
//!
//! In f32 every number must be the twin's, bit for bit but for the sign of zero. In 16 bits the tensor
//! cores' sums have no stated order and the exponential is the device's own: attention and GELU may be a
//! few units in the last place away.

use std::fmt::Debug;
use std::ops::Range;

use half::{bf16, f16};
use kernels::cuda::twin::{self, Attend, Packed, PoolMode, Stored};
use kernels::cuda::{
    Kernel, Launch, Number, ROTARY_HEAD_WIDTHS, ROTATED_BEYOND, attention_scale, rotary_angles, rows_before,
};

use super::random::Random;
use super::report::check;

/// An argument of a kernel.
pub(super) enum Argument<'a> {
    /// Bytes that it reads.
    Read(Vec<u8>),
    /// Bytes that it changes, which come back.
    Write(&'a mut Vec<u8>),
    Int(i32),
    Long(i64),
    Float(f32),
}

/// Where kernels run.
pub(super) trait Launcher {
    /// Runs one kernel and waits for it.
    ///
    /// # Errors
    /// If the device fails.
    fn launch(&mut self, kernel: Kernel, launch: Launch, arguments: Vec<Argument<'_>>) -> Result<(), String>;

    /// # Errors
    /// Why the device cannot compute with it.
    fn supports(&self, number: Number) -> Result<(), String>;

    /// Units in the last place by which attention in 16 bits may be off.
    fn attention_units(&self) -> f32;
}

/// What lies behind each buffer that a kernel writes: a store beyond the end shows.
const MARK: [u8; 64] = [0x5a; 64];

/// Numbers as the device keeps them.
trait Plain: Copy {
    fn put(self, bytes: &mut Vec<u8>);
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($number:ty),+) => {$(
        impl Plain for $number {
            fn put(self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_le_bytes());
            }

            fn get(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<Self>()];
                own.copy_from_slice(bytes);
                Self::from_le_bytes(own)
            }
        }
    )+};
}

plain!(u8, i32, f32, f16, bf16);

fn bytes_of<T: Plain>(values: &[T]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of_val(values));
    values.iter().for_each(|value| value.put(&mut bytes));
    bytes
}

fn read<T: Plain>(values: &[T]) -> Argument<'static> {
    Argument::Read(bytes_of(values))
}

/// A buffer that a kernel writes, its end marked.
struct Output(Vec<u8>);

impl Output {
    fn new<T: Plain>(values: &[T]) -> Self {
        let mut bytes = bytes_of(values);
        bytes.extend(MARK);
        Self(bytes)
    }

    fn values<T: Plain>(&self) -> Result<Vec<T>, String> {
        let (values, mark) = self.0.split_at(self.0.len() - MARK.len());
        if mark != MARK {
            return Err("something was stored behind the end of the result".to_owned());
        }
        Ok(values.chunks_exact(size_of::<T>()).map(T::get).collect())
    }
}

/// Numbers of either sign whose size varies.
fn numbers<T: Stored>(random: &mut Random, count: usize) -> Vec<T> {
    let mut next = || (random.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
    (0..count).map(|_| T::narrow(next() * 4.0 + next())).collect()
}

/// Each number within `units` of the last place of T, or 1/8 of that of 1; NaN is NaN.
fn near<T: Stored + Debug>(got: &[T], expected: &[T], units: f32) -> Result<(), String> {
    if got.len() != expected.len() {
        return Err(format!("{} numbers, expected {}", got.len(), expected.len()));
    }
    let count = expected.len();
    let (mut apart, mut worst, mut first) = (0, 0.0f32, None);
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let (x, y) = (got.widen(), expected.widen());
        if x == y || x.is_nan() && y.is_nan() {
            continue;
        }
        let error = (x - y).abs() / y.abs().max(0.125) / T::EPSILON;
        let error = if error.is_nan() { f32::INFINITY } else { error };
        if error > units {
            apart += 1;
            worst = worst.max(error);
            first = first.or(Some((index, *got, *expected)));
        }
    }
    match first {
        None => Ok(()),
        Some((index, got, expected)) => Err(format!(
            "{apart} of {count} numbers are apart, by up to {worst:.1} units; number {index} is {got:?}, expected {expected:?}"
        )),
    }
}

/// Where tiles of 64 rows and blocks of keys begin and end, and anything else.
fn lengths(random: &mut Random, tokens_max: usize) -> Vec<usize> {
    filled_up(vec![65, 3, 31], random, tokens_max)
}

/// The same, with sequences on either side of where keys are rotated beforehand.
fn long_lengths(random: &mut Random, tokens_max: usize) -> Vec<usize> {
    let beyond = ROTATED_BEYOND + random.within(1..20);
    let within = (ROTATED_BEYOND - random.within(0..20)).min(tokens_max.max(65));
    filled_up(vec![beyond, 3, within], random, tokens_max)
}

fn filled_up(mut lengths: Vec<usize>, random: &mut Random, tokens_max: usize) -> Vec<usize> {
    let mut left = tokens_max.saturating_sub(lengths.iter().sum());
    while left > 3 {
        let range: Range<usize> = [3..40, 60..70, 120..135, 3..300, 500..1_100][random.within(0..5)].clone();
        let length = random.within(range).min(left).max(3);
        left = left.saturating_sub(length);
        lengths.push(length);
    }
    lengths
}

fn tile_bytes(tiles: &[[i32; 2]]) -> Argument<'static> {
    read(tiles.as_flattened())
}

/// Shapes tried of each kernel.
#[derive(Clone, Copy)]
pub(super) struct Effort {
    pub(super) rounds: usize,
    pub(super) tokens_max: usize,
}

/// The device and the shapes to try.
struct Trial<'a> {
    device: &'a mut dyn Launcher,
    random: Random,
    effort: Effort,
    /// Numbers compared.
    compared: usize,
    /// What was wrong first with each kernel with which anything was.
    wrong: Vec<(Kernel, String)>,
}

impl<'a> Trial<'a> {
    fn new(device: &'a mut dyn Launcher, effort: Effort, seed: u64) -> Self {
        Self { device, random: Random::new(seed), effort, compared: 0, wrong: Vec::new() }
    }

    /// What the checks of one kind have found.
    fn run(mut self, body: Body) -> Result<String, String> {
        let failed = body(&mut self).err();
        let wrong: Vec<String> = self.wrong.into_iter().map(|(_, error)| error).chain(failed).collect();
        if wrong.is_empty() {
            return Ok(format!("{} numbers are those of the twin", self.compared));
        }
        Err(wrong.join("; "))
    }

    /// Holds a kernel's numbers against its twin's; wrong ones keep no other kernel from being tried.
    fn compare<T: Stored + Plain + Debug>(
        &mut self,
        kernel: Kernel,
        shape: &str,
        got: &Output,
        expected: &[T],
        units: f32,
    ) {
        self.compared += expected.len();
        self.note(kernel, shape, got.values().and_then(|got: Vec<T>| near(&got, expected, units)));
    }

    /// The same of flags, which say `what`.
    fn compare_flags(&mut self, kernel: Kernel, shape: &str, got: &Output, expected: &[i32], what: &str) {
        let result = got.values().and_then(|got: Vec<i32>| match got == expected {
            true => Ok(()),
            false => Err(format!("{what} is told wrong")),
        });
        self.note(kernel, shape, result);
    }

    fn note(&mut self, kernel: Kernel, shape: &str, result: Result<(), String>) {
        let known = self.wrong.iter().any(|(wrong, _)| *wrong == kernel);
        if let (Err(error), false) = (result, known) {
            self.wrong.push((kernel, format!("{} of {shape}: {error}", kernel.name())));
        }
    }

    fn attention<T: Stored + Plain + Debug>(&mut self) -> Result<(), String> {
        for head_width in ROTARY_HEAD_WIDTHS {
            for _ in 0..self.effort.rounds {
                let short = lengths(&mut self.random, self.effort.tokens_max);
                // Right for sequences of any length.
                let kernel = Kernel::Attention { number: T::NUMBER, head_width };
                self.attend::<T>(head_width, Packed::new(&short), (None, kernel))?;
                if T::NUMBER == Number::F32 {
                    continue;
                }
                let long = Packed::new(&long_lengths(&mut self.random, self.effort.tokens_max));
                let kernels = Kernel::attention(T::NUMBER, head_width, long.longest);
                self.attend::<T>(head_width, long, kernels)?;
            }
        }
        Ok(())
    }

    /// `rotate`, `kernel`: of [`Kernel::attention`].
    fn attend<T: Stored + Plain + Debug>(
        &mut self,
        head_width: usize,
        packed: Packed,
        (rotate, kernel): (Option<Kernel>, Kernel),
    ) -> Result<(), String> {
        let units = match T::NUMBER {
            Number::F32 => 0.0,
            Number::F16 | Number::Bf16 => self.device.attention_units(),
        };
        let Packed { cu_seqlens, tiles, tokens, longest } = packed;
        let heads = self.random.within(1..4);
        let width = heads * head_width;
        let mut qkv = numbers::<T>(&mut self.random, tokens * 3 * width);
        // A neighbour full of NaN: whoever reads beyond its own rows shows it.
        let poisoned = cu_seqlens[1] as usize * 3 * width..cu_seqlens[2] as usize * 3 * width;
        qkv[poisoned].fill(T::narrow(f32::NAN));
        let (cosines, sines) = rotary_angles(head_width, longest);
        let scale = attention_scale(head_width);
        let attend = Attend {
            qkv: &qkv,
            cu_seqlens: &cu_seqlens,
            tiles: &tiles,
            cosines: &cosines,
            sines: &sines,
            heads,
            scale,
        };
        let mut expected = vec![T::narrow(f32::NAN); tokens * width];
        twin::attention(attend, head_width, &mut expected);
        let shape = format!("{heads} heads, {tokens} tokens, the longest sequence {longest}");
        // Attention reads what the twin has rotated: each kernel answers for itself.
        let mut rotated = qkv.clone();
        if let Some(rotate) = rotate {
            twin::rotate_keys(attend, head_width, &mut rotated);
            let mut out = Output::new(&qkv);
            let arguments = vec![
                Argument::Write(&mut out.0),
                read(&cu_seqlens),
                tile_bytes(&tiles),
                read(&cosines),
                read(&sines),
                Argument::Int(heads as i32),
            ];
            self.device.launch(rotate, Launch::per_tile(tiles.len()), arguments)?;
            self.compare(rotate, &shape, &out, &rotated, 0.0);
        }
        let mut out = Output::new(&vec![T::narrow(-7.0); tokens * width]);
        let arguments = vec![
            read(&rotated),
            read(&cu_seqlens),
            tile_bytes(&tiles),
            read(&cosines),
            read(&sines),
            Argument::Write(&mut out.0),
            Argument::Int(heads as i32),
            Argument::Float(scale),
        ];
        self.device.launch(kernel, Launch::attention(T::NUMBER, tiles.len(), heads), arguments)?;
        self.compare(kernel, &shape, &out, &expected, units);
        Ok(())
    }

    fn embed<T: Stored + Plain, O: Stored + Plain + Debug>(&mut self) -> Result<(), String> {
        for round in 0..2 * self.effort.rounds {
            let hidden = self.random.within(1..1_300);
            let dropout = round % 2 == 0;
            let Packed { cu_seqlens, tiles, tokens, .. } =
                Packed::new(&lengths(&mut self.random, self.effort.tokens_max));
            let ids: Vec<u8> = (0..tokens).map(|_| self.random.within(0..33) as u8).collect();
            let table = numbers::<T>(&mut self.random, 33 * hidden);
            let mut expected = vec![O::narrow(f32::NAN); tokens * hidden];
            twin::embed(&ids, &cu_seqlens, &tiles, &table, &mut expected, hidden, dropout);
            let mut out = Output::new(&vec![O::narrow(-7.0); tokens * hidden]);
            let kernel = Kernel::Embed { table: T::NUMBER, out: O::NUMBER };
            let arguments = vec![
                read(&ids),
                read(&cu_seqlens),
                tile_bytes(&tiles),
                read(&table),
                Argument::Write(&mut out.0),
                Argument::Int(hidden as i32),
                Argument::Int(i32::from(dropout)),
            ];
            self.device.launch(kernel, Launch::per_tile(tiles.len()), arguments)?;
            self.compare(kernel, &format!("{tokens} tokens, width {hidden}"), &out, &expected, 0.0);
        }
        Ok(())
    }

    fn norm<X: Stored + Plain, O: Stored + Plain + Debug>(&mut self) -> Result<(), String> {
        for round in 0..3 * self.effort.rounds {
            let rows = self.random.within(1..40);
            let width = match round % 3 {
                0 => 8 * self.random.within(1..321),
                1 => self.random.within(1..700),
                // Where the wider kernel is taken.
                _ => 8 * self.random.within(321..641),
            };
            let x = numbers::<X>(&mut self.random, rows * width);
            let scale = numbers::<f32>(&mut self.random, width);
            let shift = numbers::<f32>(&mut self.random, width);
            let mut expected = vec![O::narrow(f32::NAN); rows * width];
            twin::layer_norm(&x, &scale, &shift, &mut expected, rows, width, 1e-5);
            let (x_number, out_number) = (X::NUMBER, O::NUMBER);
            // Either is right for any width.
            for kernel in [
                Kernel::LayerNorm { x: x_number, out: out_number },
                Kernel::LayerNormWide { x: x_number, out: out_number },
            ] {
                let mut out = Output::new(&vec![O::narrow(-7.0); rows * width]);
                let arguments = vec![
                    read(&x),
                    read(&scale),
                    read(&shift),
                    Argument::Write(&mut out.0),
                    Argument::Int(rows as i32),
                    Argument::Int(width as i32),
                    Argument::Float(1e-5),
                ];
                self.device.launch(kernel, Launch::layer_norm(rows), arguments)?;
                self.compare(kernel, &format!("{rows} rows, width {width}"), &out, &expected, 0.0);
            }
        }
        Ok(())
    }

    fn epilogues<T: Stored + Plain + Debug>(&mut self) -> Result<(), String> {
        // In 16 bits the kernel's exponential is not the twin's.
        let units = if T::NUMBER == Number::F32 { 0.0 } else { 1.0 };
        for round in 0..2 * self.effort.rounds {
            let rows = self.random.within(1..20);
            let width =
                if round % 2 == 0 { 8 * self.random.within(1..640) } else { self.random.within(1..300) };
            let mut x = numbers::<T>(&mut self.random, rows * width);
            for at in 0..x.len().min(9) {
                x[at] = T::narrow([0.0, -0.0, 30.0, -30.0, 6.0, -6.0, f32::NAN, f32::INFINITY, 1e-4][at]);
            }
            let bias = numbers::<T>(&mut self.random, width);
            for kernel in [Kernel::Gelu(T::NUMBER), Kernel::Bias(T::NUMBER), Kernel::BiasGelu(T::NUMBER)] {
                let mut expected = x.clone();
                let mut out = Output::new(&x);
                let (launch, arguments) = if let Kernel::Gelu(_) = kernel {
                    twin::gelu(&mut expected);
                    let count = Argument::Long((rows * width) as i64);
                    (Launch::per_number(rows * width), vec![Argument::Write(&mut out.0), count])
                } else {
                    match kernel {
                        Kernel::Bias(_) => twin::bias(&mut expected, &bias, width),
                        _ => twin::bias_gelu(&mut expected, &bias, width),
                    }
                    let arguments =
                        vec![Argument::Write(&mut out.0), read(&bias), Argument::Int(width as i32)];
                    (Launch::per_row(rows, width), arguments)
                };
                self.device.launch(kernel, launch, arguments)?;
                let units = if let Kernel::Bias(_) = kernel { 0.0 } else { units };
                self.compare(kernel, &format!("{rows} rows, width {width}"), &out, &expected, units);
            }
        }
        Ok(())
    }

    fn residual<P: Stored + Plain, R: Stored + Plain + Debug>(&mut self) -> Result<(), String> {
        for _ in 0..self.effort.rounds {
            let (rows, width) = (self.random.within(1..20), self.random.within(1..2_600));
            let product = numbers::<P>(&mut self.random, rows * width);
            let bias = numbers::<R>(&mut self.random, width);
            let residual = numbers::<R>(&mut self.random, rows * width);
            let mut expected = residual.clone();
            twin::bias_residual(&product, &bias, &mut expected, width);
            let mut out = Output::new(&residual);
            let kernel = Kernel::BiasResidual { product: P::NUMBER, residual: R::NUMBER };
            let arguments =
                vec![read(&product), read(&bias), Argument::Write(&mut out.0), Argument::Int(width as i32)];
            self.device.launch(kernel, Launch::per_row(rows, width), arguments)?;
            self.compare(kernel, &format!("{rows} rows, width {width}"), &out, &expected, 0.0);
        }
        Ok(())
    }

    fn pool<T: Stored + Plain>(&mut self) -> Result<(), String> {
        const NOT_FINITE: &str = "which sequences are not finite";
        for _ in 0..self.effort.rounds {
            let width = self.random.within(1..1_300);
            let lengths = lengths(&mut self.random, self.effort.tokens_max);
            let sequences = lengths.len();
            let Packed { cu_seqlens, tiles, tokens, .. } = Packed::new(&lengths);
            let pooled: Vec<i32> =
                lengths.iter().map(|&length| self.random.within(1..length - 1) as i32).collect();
            let mut x = numbers::<T>(&mut self.random, tokens * width);
            // The last pooled number of one sequence, and what nobody pools of another.
            let end = cu_seqlens[2] as usize + 1 + pooled[2] as usize;
            x[end * width - 1] = T::narrow(f32::NAN);
            x[(cu_seqlens[2] as usize - 1) * width..][..width].fill(T::narrow(f32::INFINITY));
            for mode in [PoolMode::Mean, PoolMode::Bos, PoolMode::Max] {
                let (mut expected, mut expected_flags) = (vec![0.0; sequences * width], vec![0; sequences]);
                twin::pool(&x, &cu_seqlens, &pooled, mode, &mut expected, &mut expected_flags, width);
                let (mut out, mut flags) = pooled_output(sequences, sequences * width);
                let kernel = Kernel::Pool(T::NUMBER);
                let arguments = vec![
                    read(&x),
                    read(&cu_seqlens),
                    read(&pooled),
                    Argument::Int(mode as i32),
                    Argument::Write(&mut out.0),
                    Argument::Write(&mut flags.0),
                    Argument::Int(width as i32),
                ];
                self.device.launch(kernel, Launch::pool(sequences, width), arguments)?;
                let shape = format!("{sequences} sequences, width {width}, {mode:?}");
                self.compare(kernel, &shape, &out, &expected, 0.0);
                self.compare_flags(kernel, &shape, &flags, &expected_flags, NOT_FINITE);
            }

            let rows: Vec<u32> = pooled.iter().map(|&rows| rows as u32).collect();
            let before = rows_before(&rows);
            let total = rows.iter().sum::<u32>() as usize;
            let (mut expected, mut expected_flags) = (vec![0.0; total * width], vec![0; sequences]);
            twin::gather(
                &x,
                &cu_seqlens,
                &tiles,
                &pooled,
                &before,
                &mut expected,
                &mut expected_flags,
                width,
            );
            let (mut out, mut flags) = pooled_output(sequences, total * width);
            let kernel = Kernel::Gather(T::NUMBER);
            let arguments = vec![
                read(&x),
                read(&cu_seqlens),
                tile_bytes(&tiles),
                read(&pooled),
                read(&before),
                Argument::Write(&mut out.0),
                Argument::Write(&mut flags.0),
                Argument::Int(width as i32),
            ];
            self.device.launch(kernel, Launch::per_tile(tiles.len()), arguments)?;
            let shape = format!("{sequences} sequences, width {width}");
            self.compare(kernel, &shape, &out, &expected, 0.0);
            self.compare_flags(kernel, &shape, &flags, &expected_flags, NOT_FINITE);
        }
        Ok(())
    }

    fn convert<S: Stored + Plain, D: Stored + Plain + Debug>(&mut self) -> Result<(), String> {
        for largest in [1.0f32, 65_504.0, 1e-7, 3e38] {
            let count = self.random.within(1..9_000);
            let mut from = numbers::<S>(&mut self.random, count);
            from[count / 2] = S::narrow(largest);
            let mut expected = vec![D::narrow(0.0); count];
            let expected_flag = i32::from(twin::convert(&from, &mut expected));
            let mut out = Output::new(&vec![D::narrow(-7.0); count]);
            let mut flag = Output::new(&[0i32]);
            let kernel = Kernel::Convert { from: S::NUMBER, to: D::NUMBER };
            let arguments = vec![
                read(&from),
                Argument::Write(&mut out.0),
                Argument::Long(count as i64),
                Argument::Write(&mut flag.0),
            ];
            self.device.launch(kernel, Launch::per_number(count), arguments)?;
            let shape = format!("{count} numbers, one {largest:e}");
            self.compare(kernel, &shape, &out, &expected, 0.0);
            self.compare_flags(kernel, &shape, &flag, &[expected_flag], "an overflow");
        }
        Ok(())
    }
}

/// Room for so many pooled numbers, and for flags of sequences.
fn pooled_output(sequences: usize, numbers: usize) -> (Output, Output) {
    (Output::new(&vec![-7.0f32; numbers]), Output::new(&vec![0i32; sequences]))
}

type Body = fn(&mut Trial<'_>) -> Result<(), String>;
/// What is tried, the number types that the device must have for it, and how.
type Kind = (&'static str, &'static [Number], Body);

/// Every check of this step: between them, they launch every kernel.
fn kinds() -> [Kind; 25] {
    use Number::{Bf16, F16, F32};
    [
        ("attention f32", &[F32], |trial| trial.attention::<f32>()),
        ("attention f16", &[F16], |trial| trial.attention::<f16>()),
        ("attention bf16", &[Bf16], |trial| trial.attention::<bf16>()),
        ("embedding f32", &[F32], |trial| trial.embed::<f32, f32>()),
        ("embedding f16", &[F16], |trial| trial.embed::<f16, f16>()),
        ("embedding f16 to f32", &[F16], |trial| trial.embed::<f16, f32>()),
        ("embedding bf16", &[Bf16], |trial| trial.embed::<bf16, bf16>()),
        ("embedding bf16 to f32", &[Bf16], |trial| trial.embed::<bf16, f32>()),
        ("layer norm f32", &[F32], |trial| trial.norm::<f32, f32>()),
        ("layer norm f32 to f16", &[F16], |trial| trial.norm::<f32, f16>()),
        ("layer norm f32 to bf16", &[Bf16], |trial| trial.norm::<f32, bf16>()),
        ("layer norm f16", &[F16], |trial| trial.norm::<f16, f16>().and_then(|()| trial.norm::<f16, f32>())),
        ("layer norm bf16", &[Bf16], |trial| {
            trial.norm::<bf16, bf16>().and_then(|()| trial.norm::<bf16, f32>())
        }),
        ("GELU and bias f32", &[F32], |trial| trial.epilogues::<f32>()),
        ("GELU and bias f16", &[F16], |trial| trial.epilogues::<f16>()),
        ("GELU and bias bf16", &[Bf16], |trial| trial.epilogues::<bf16>()),
        ("residual f32", &[F32], |trial| trial.residual::<f32, f32>()),
        ("residual f16", &[F16], |trial| {
            trial.residual::<f16, f16>().and_then(|()| trial.residual::<f16, f32>())
        }),
        ("residual bf16", &[Bf16], |trial| {
            trial.residual::<bf16, bf16>().and_then(|()| trial.residual::<bf16, f32>())
        }),
        ("pooling f32", &[F32], |trial| trial.pool::<f32>()),
        ("pooling f16", &[F16], |trial| trial.pool::<f16>()),
        ("pooling bf16", &[Bf16], |trial| trial.pool::<bf16>()),
        ("conversion f32 and f16", &[F16], |trial| {
            trial.convert::<f32, f16>().and_then(|()| trial.convert::<f16, f32>())
        }),
        ("conversion f32 and bf16", &[Bf16], |trial| {
            trial.convert::<f32, bf16>().and_then(|()| trial.convert::<bf16, f32>())
        }),
        ("conversion f16 and bf16", &[F16, Bf16], |trial| {
            trial.convert::<f16, bf16>().and_then(|()| trial.convert::<bf16, f16>())
        }),
    ]
}

/// Makes every check of this step.
pub(super) fn kernels(device: &mut dyn Launcher, effort: Effort, seed: u64) {
    for (index, (name, numbers, body)) in kinds().into_iter().enumerate() {
        let what = format!("kernels: {name}");
        if let Some(why) = numbers.iter().find_map(|&number| device.supports(number).err()) {
            super::report::skip(&what, why);
            continue;
        }
        let trial = Trial::new(device, effort, seed.wrapping_add(index as u64));
        check(&what, || trial.run(body));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn numbers_apart_are_found() {
        let expected = [1.0f32, -2.0, 0.0, f32::NAN];
        assert!(near(&[1.0f32, -2.0, -0.0, f32::NAN], &expected, 0.0).is_ok());
        for got in
            [[1.0 + f32::EPSILON, -2.0, 0.0, f32::NAN], [1.0, f32::NAN, 0.0, f32::NAN], [1.0, -2.0, 0.0, 0.0]]
        {
            assert!(near(&got, &expected, 0.0).is_err(), "{got:?}");
        }
        assert!(near(&expected[..3], &expected, 0.0).is_err());
        let one = [f16::ONE];
        assert!(near(&[f16::from_f32(1.0 + 0.001)], &one, 1.5).is_ok());
        assert!(near(&[f16::from_f32(1.0 + 0.003)], &one, 1.5).is_err());
        assert!(near(&[f16::INFINITY], &one, 1.5).is_err());
    }

    #[test]
    fn a_store_behind_the_end_is_found() {
        let mut output = Output::new(&[1.0f32, 2.0]);
        assert_eq!(output.values::<f32>().unwrap(), [1.0, 2.0]);
        output.0[8] = 0;
        assert!(output.values::<f32>().is_err());
    }

    /// Converts f32 to f16 and computes nothing else.
    struct Converter {
        /// Added to each result.
        error: f32,
        launched: HashSet<Kernel>,
    }

    impl Converter {
        fn new(error: f32) -> Self {
            Self { error, launched: HashSet::new() }
        }
    }

    impl Launcher for Converter {
        fn launch(
            &mut self,
            kernel: Kernel,
            _: Launch,
            mut arguments: Vec<Argument<'_>>,
        ) -> Result<(), String> {
            self.launched.insert(kernel);
            let Kernel::Convert { from: Number::F32, to: Number::F16 } = kernel else { return Ok(()) };
            let [Argument::Read(from), Argument::Write(to), _, Argument::Write(flag)] =
                arguments.as_mut_slice()
            else {
                return Err("other arguments".into());
            };
            let from: Vec<f32> = from.chunks_exact(4).map(f32::get).collect();
            let mut halves = vec![f16::ZERO; from.len()];
            let overflowed = twin::convert(&from, &mut halves);
            halves.iter_mut().for_each(|half| *half = f16::from_f32(half.to_f32() + self.error));
            to[..2 * halves.len()].copy_from_slice(&bytes_of(&halves));
            flag[..4].copy_from_slice(&i32::from(overflowed).to_le_bytes());
            Ok(())
        }

        fn supports(&self, _: Number) -> Result<(), String> {
            Ok(())
        }

        fn attention_units(&self) -> f32 {
            2.0
        }
    }

    const LITTLE: Effort = Effort { rounds: 1, tokens_max: 100 };

    #[test]
    fn a_device_that_is_wrong_by_little_is_found() {
        for (error, passes) in [(0.0, true), (0.01, false)] {
            let mut device = Converter::new(error);
            let result = Trial::new(&mut device, LITTLE, 1).run(|trial| trial.convert::<f32, f16>());
            assert_eq!(result.is_ok(), passes, "{result:?}");
        }
    }

    #[test]
    fn every_kernel_is_launched_and_none_passes_that_computes_nothing() {
        let mut device = Converter::new(0.0);
        let mut failed = String::new();
        for (name, _, body) in kinds() {
            failed += &Trial::new(&mut device, LITTLE, 1).run(body).expect_err(name);
            failed += "; ";
        }
        for kernel in Kernel::all() {
            assert!(device.launched.contains(&kernel), "{} is not checked", kernel.name());
            let works = matches!(kernel, Kernel::Convert { from: Number::F32, to: Number::F16 });
            assert_eq!(failed.contains(&format!("{} of ", kernel.name())), !works, "{kernel:?}: {failed}");
        }
    }

    #[test]
    fn lengths_keep_to_their_sum() {
        let mut random = Random::new(3);
        for tokens_max in [100, 343, 2_000] {
            let lengths = lengths(&mut random, tokens_max);
            assert!(lengths.len() >= 3 && lengths.iter().all(|&length| length >= 3));
            assert!((tokens_max - 4..=tokens_max + 3).contains(&lengths.iter().sum()), "{lengths:?}");
            let [beyond, _, within] = long_lengths(&mut random, tokens_max)[..3] else { panic!() };
            assert!((65..=ROTATED_BEYOND).contains(&within), "{within}");
            assert!(beyond > ROTATED_BEYOND, "{beyond}");
        }
    }
}
