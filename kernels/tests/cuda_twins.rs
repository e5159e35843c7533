//! The twins of the CUDA kernels against the CPU engine and the golden values.
//!
//! A whole encoder is built of twins, in each number type, and held to the tolerances of that type;
//! each twin is then held against the CPU engine's operation on shapes that the golden models lack.

#![expect(clippy::unwrap_used, reason = "tests")]

#[expect(dead_code, reason = "these tests need a part of it")]
mod reference;
mod seeded;

use half::{bf16, f16};
use kernels::cpu::CpuOps;
use kernels::cuda::twin::{self, Attend, PoolMode, Stored};
use kernels::cuda::{ROTARY_HEAD_WIDTHS, attention_scale, rotary_angles, rows_before, tiles};
use kernels::encoder::Encoder;
use kernels::model::{StoredType, Tensor};
use kernels::ops::{Epilogue, LinearRows, Ops, PooledRows};
use kernels::{Batch, EngineError, EngineOptions, Pooling, Precision, Progress};
use proptest::test_runner::TestRunner;
use reference::{Case, Golden, assert_close, repository};
use seeded::numbers;

/// The encoder's operations as a CUDA engine would chain them: T in products and attention, f32 in the
/// residual stream, sums of products in f32.
struct TwinOps<T> {
    head_width: usize,
    number: std::marker::PhantomData<T>,
}

/// Rows of one kind or the other; the encoder swaps buffers, so each can hold both.
#[derive(Default)]
struct Rows<T> {
    stored: Vec<T>,
    wide: Vec<f32>,
}

struct Layout {
    batch: Batch,
    cu_seqlens: Vec<i32>,
    tiles: Vec<[i32; 2]>,
}

struct Norm {
    scale: Vec<f32>,
    shift: Vec<f32>,
    eps: f32,
}

/// [outputs, inputs] and [outputs]; the bias as f32 for the residual stream and as T elsewhere.
struct Linear<T> {
    weight: Vec<T>,
    bias: Vec<f32>,
    inputs: usize,
}

fn stored<T: Stored>(values: &[f32]) -> Vec<T> {
    let mut out = vec![T::narrow(0.0); values.len()];
    assert!(!twin::convert(values, &mut out));
    out
}

fn widened<T: Stored>(values: &[T]) -> Vec<f32> {
    values.iter().map(|x| x.widen()).collect()
}

impl<T: Stored + 'static> Ops for TwinOps<T> {
    type Activations = Rows<T>;
    type Pooled = Vec<f32>;
    type Layout = Layout;
    type Table = (Vec<T>, usize);
    type Norm = Norm;
    type Linear = Linear<T>;

    fn table(&mut self, values: &Tensor<'_>) -> Result<Self::Table, EngineError> {
        Ok((stored(&values.to_f32()), values.shape[1]))
    }

    fn norm(&mut self, scale: &Tensor<'_>, shift: &Tensor<'_>, eps: f32) -> Result<Norm, EngineError> {
        Ok(Norm { scale: scale.to_f32(), shift: shift.to_f32(), eps })
    }

    fn linear(&mut self, parts: &[LinearRows<'_>]) -> Result<Linear<T>, EngineError> {
        let weight: Vec<f32> = parts.iter().flat_map(|part| part.weight.to_f32()).collect();
        let bias = parts.iter().flat_map(|part| part.bias.to_f32()).collect();
        Ok(Linear { weight: stored(&weight), bias, inputs: parts[0].weight.shape[1] })
    }

    fn activations(&mut self, tokens: usize, width: usize) -> Result<Rows<T>, EngineError> {
        Ok(Rows { stored: vec![T::narrow(f32::NAN); tokens * width], wide: vec![f32::NAN; tokens * width] })
    }

    fn layout(&mut self, batch: &Batch) -> Result<Layout, EngineError> {
        let cu_seqlens = batch.cu_seqlens.iter().map(|&limit| limit as i32).collect();
        Ok(Layout { batch: batch.clone(), cu_seqlens, tiles: tiles(&batch.cu_seqlens) })
    }

    fn embed(
        &mut self,
        layout: &Layout,
        (table, hidden): &Self::Table,
        token_dropout: bool,
        out: &mut Rows<T>,
    ) -> Result<(), EngineError> {
        let Layout { batch, cu_seqlens, tiles } = layout;
        twin::embed(&batch.tokens, cu_seqlens, tiles, table, &mut out.wide, *hidden, token_dropout);
        Ok(())
    }

    fn layer_norm(
        &mut self,
        layout: &Layout,
        x: &Rows<T>,
        norm: &Norm,
        out: &mut Rows<T>,
    ) -> Result<(), EngineError> {
        let (rows, width) = (layout.batch.token_count(), norm.scale.len());
        twin::layer_norm(&x.wide, &norm.scale, &norm.shift, &mut out.stored, rows, width, norm.eps);
        // The last norm's result is pooled as f32.
        twin::layer_norm(&x.wide, &norm.scale, &norm.shift, &mut out.wide, rows, width, norm.eps);
        Ok(())
    }

    fn apply(
        &mut self,
        layout: &Layout,
        x: &Rows<T>,
        linear: &Linear<T>,
        epilogue: Epilogue,
        out: &mut Rows<T>,
    ) -> Result<(), EngineError> {
        let (tokens, outputs) = (layout.batch.token_count(), linear.bias.len());
        let weight = widened(&linear.weight);
        let products: Vec<f32> = x.stored[..tokens * linear.inputs]
            .chunks_exact(linear.inputs)
            .flat_map(|row| {
                let row = widened(row);
                weight
                    .chunks_exact(linear.inputs)
                    .map(|weight| row.iter().zip(weight).map(|(x, w)| x * w).sum::<f32>())
                    .collect::<Vec<f32>>()
            })
            .collect();
        let target = &mut out.stored[..];
        match epilogue {
            Epilogue::Residual => {
                let residual = &mut out.wide[..tokens * outputs];
                twin::bias_residual(&products, &linear.bias, residual, outputs);
            }
            Epilogue::Bias | Epilogue::Gelu => {
                let target = &mut target[..tokens * outputs];
                for (target, product) in target.iter_mut().zip(&products) {
                    *target = T::narrow(*product);
                }
                let bias: Vec<T> = stored(&linear.bias);
                match epilogue {
                    Epilogue::Gelu => twin::bias_gelu(target, &bias, outputs),
                    Epilogue::Bias | Epilogue::Residual => twin::bias(target, &bias, outputs),
                }
            }
        }
        Ok(())
    }

    fn attention(
        &mut self,
        layout: &Layout,
        qkv: &Rows<T>,
        heads: usize,
        _progress: &Progress,
        out: &mut Rows<T>,
    ) -> Result<(), EngineError> {
        let (cosines, sines) = rotary_angles(self.head_width, layout.batch.max_seqlen());
        let attend = Attend {
            qkv: &qkv.stored,
            cu_seqlens: &layout.cu_seqlens,
            tiles: &layout.tiles,
            cosines: &cosines,
            sines: &sines,
            heads,
            scale: attention_scale(self.head_width),
        };
        twin::attention(attend, self.head_width, &mut out.stored);
        Ok(())
    }

    fn pool(
        &mut self,
        layout: &Layout,
        x: &Rows<T>,
        hidden: usize,
        pooling: Pooling,
    ) -> Result<Vec<f32>, EngineError> {
        let pooled: Vec<i32> = layout.batch.pooled_residues.iter().map(|&rows| rows as i32).collect();
        Ok(pool(&x.wide, layout, &pooled, hidden, pooling).0)
    }

    fn wait(&mut self, values: Vec<f32>, _progress: &Progress) -> Result<PooledRows, EngineError> {
        Ok(PooledRows { values, non_finite: None })
    }
}

/// Results and flags of the pooling twins.
fn pool<T: Stored>(
    x: &[T],
    layout: &Layout,
    pooled: &[i32],
    width: usize,
    pooling: Pooling,
) -> (Vec<f32>, Vec<i32>) {
    let Layout { batch, cu_seqlens, tiles } = layout;
    let rows: usize = (0..batch.len()).map(|index| batch.rows(index, pooling)).sum();
    let (mut out, mut flags) = (vec![f32::NAN; rows * width], vec![0; batch.len()]);
    let mode = match pooling {
        Pooling::Mean => PoolMode::Mean,
        Pooling::Bos => PoolMode::Bos,
        Pooling::Max => PoolMode::Max,
        Pooling::None => {
            let before = rows_before(&batch.pooled_residues);
            twin::gather(x, cu_seqlens, tiles, pooled, &before, &mut out, &mut flags, width);
            return (out, flags);
        }
    };
    twin::pool(x, cu_seqlens, pooled, mode, &mut out, &mut flags, width);
    (out, flags)
}

// ---- the golden values -----------------------------------------------------------------------------

/// Runs every golden row of at most `tokens_max` tokens through an encoder made of twins.
fn check_golden<T: Stored + 'static>(tolerance: &str, tokens_max: usize) {
    let golden = Golden::read(&repository().join("tests/golden"), "tiny");
    let cases: Vec<&Case> = golden.manifest.cases.iter().filter(|case| case.n_tokens <= tokens_max).collect();
    assert!(cases.len() >= 50, "{} rows", cases.len());
    let batch = golden.batch(cases.iter().copied());
    let model = golden.model();

    let options = EngineOptions {
        layer: model.config().layers,
        pooling: Pooling::Mean,
        precision: Precision::Fp32,
        threads: 1,
    };
    let ops = TwinOps::<T> { head_width: model.config().head_width(), number: std::marker::PhantomData };
    let mut encoder = Encoder::load(ops, &model, options).unwrap();
    let got = encoder.run(&batch, &Progress::default()).unwrap();
    for (case, got) in cases.iter().zip(got.values.chunks_exact(golden.hidden)) {
        let expected = golden.expected_row(case.row);
        let what = format!("{tolerance} {}|{}", case.id, case.variant);
        assert_close(got, expected, golden.manifest.tolerances[tolerance], &what);
    }
}

#[test]
fn an_encoder_of_f32_twins_matches_the_golden_values() {
    check_golden::<f32>("fp32", 1_030);
}

#[test]
fn an_encoder_of_f16_twins_matches_the_golden_values() {
    check_golden::<f16>("fp16", 700);
}

#[test]
fn an_encoder_of_bf16_twins_matches_the_golden_values() {
    check_golden::<bf16>("bf16", 700);
}

// ---- each twin against the CPU engine's operation --------------------------------------------------------

fn tensor<'a>(shape: &'a [usize], values: &[f32]) -> Tensor<'a> {
    assert_eq!(values.len(), shape.iter().product::<usize>());
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor { stored: StoredType::F32, shape, bytes: std::borrow::Cow::Owned(bytes) }
}

/// The CPU engine with rows of our choice in its activations: it looks them up by token.
struct Cpu {
    ops: CpuOps,
    layout: <CpuOps as Ops>::Layout,
    twin: Layout,
    /// [tokens], any of 0..=255.
    tokens: Vec<u8>,
}

impl Cpu {
    /// Sequences of `lengths` tokens; one residue more than half of each is pooled.
    fn new(head_width: usize, lengths: &[usize]) -> Self {
        let mut batch = Batch::default();
        for (ordinal, &length) in lengths.iter().enumerate() {
            let tokens: Vec<u8> = (0..length).map(|i| (i * 7 + ordinal * 31) as u8).collect();
            batch.push_tokens(ordinal as u64, &tokens, (length as u32 - 2).div_ceil(2));
        }
        let mut ops = CpuOps::new(head_width, 2, Precision::Fp32).unwrap();
        let layout = ops.layout(&batch).unwrap();
        let cu_seqlens = batch.cu_seqlens.iter().map(|&limit| limit as i32).collect();
        let twin = Layout { tiles: tiles(&batch.cu_seqlens), cu_seqlens, batch };
        Self { ops, layout, tokens: twin.batch.tokens.clone(), twin }
    }

    /// Rows [tokens, width] drawn from `table` [256, width], as the CPU's activations and as numbers.
    fn rows(&mut self, table: &[f32], width: usize) -> (<CpuOps as Ops>::Activations, Vec<f32>) {
        let mut rows = self.ops.activations(self.tokens.len(), width).unwrap();
        let prepared = self.ops.table(&tensor(&[256, width], table)).unwrap();
        self.ops.embed(&self.layout, &prepared, false, &mut rows).unwrap();
        let values = self.tokens.iter().flat_map(|&token| &table[usize::from(token) * width..][..width]);
        (rows, values.copied().collect())
    }

    fn pooled(&self) -> Vec<i32> {
        self.twin.batch.pooled_residues.iter().map(|&rows| rows as i32).collect()
    }

    /// The CPU's rows of pooled residues and the same rows of `x` [tokens, width].
    fn residues(
        &mut self,
        rows: &<CpuOps as Ops>::Activations,
        x: &[f32],
        width: usize,
    ) -> (Vec<f32>, Vec<f32>) {
        let expected = self.ops.pool(&self.layout, rows, width, Pooling::None).unwrap();
        let (got, _) = pool(x, &self.twin, &self.pooled(), width, Pooling::None);
        (expected, got)
    }
}

/// Fails unless each of `got` is within `tolerance` of `expected`, relative to 1 or the number itself.
fn assert_near(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (index, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "{what}, number {index}: {got}, expected {expected}");
    }
}

fn attended<T: Stored>(cpu: &Cpu, qkv: &[T], heads: usize, head_width: usize) -> Vec<T> {
    let (cosines, sines) = rotary_angles(head_width, cpu.twin.batch.max_seqlen());
    let attend = Attend {
        qkv,
        cu_seqlens: &cpu.twin.cu_seqlens,
        tiles: &cpu.twin.tiles,
        cosines: &cosines,
        sines: &sines,
        heads,
        scale: attention_scale(head_width),
    };
    let mut out = vec![T::narrow(f32::NAN); cpu.tokens.len() * heads * head_width];
    twin::attention(attend, head_width, &mut out);
    out
}

/// Lengths around the limits of tiles and blocks of keys, and one of several blocks.
const LENGTHS: [usize; 10] = [3, 31, 32, 33, 63, 64, 65, 128, 129, 400];

#[test]
fn attention_is_the_cpus_for_every_head_width() {
    for head_width in ROTARY_HEAD_WIDTHS {
        let heads = 2;
        let width = heads * head_width;
        let mut cpu = Cpu::new(head_width, &LENGTHS);
        // Scores of several units, so that the maximum moves and a missing factor shows.
        let table = numbers(head_width as u64, 256 * 3 * width);
        let (qkv, values) = cpu.rows(&table, 3 * width);
        let mut out = cpu.ops.activations(cpu.tokens.len(), width).unwrap();
        cpu.ops.attention(&cpu.layout, &qkv, heads, &Progress::default(), &mut out).unwrap();

        let f32s = attended(&cpu, &values, heads, head_width);
        let (expected, got) = cpu.residues(&out, &f32s, width);
        assert_near(&got, &expected, 5e-6, &format!("f32, heads of {head_width}"));

        // The same numbers rounded first: what differs then are the rounded factors.
        let halves: Vec<f16> = table.iter().map(|&x| f16::from_f32(x)).collect();
        let rounded: Vec<f32> = widened(&halves);
        let (qkv, values) = cpu.rows(&rounded, 3 * width);
        cpu.ops.attention(&cpu.layout, &qkv, heads, &Progress::default(), &mut out).unwrap();
        let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
        let f16s = widened(&attended(&cpu, &halves, heads, head_width));
        let (expected, got) = cpu.residues(&out, &f16s, width);
        assert_near(&got, &expected, 1e-2, &format!("f16, heads of {head_width}"));
    }
}

#[test]
fn a_sequences_attention_does_not_depend_on_its_neighbours() {
    let (heads, head_width) = (2, 24);
    let width = 3 * heads * head_width;
    let cpu = Cpu::new(head_width, &[70, 65, 9]);
    let mut qkv: Vec<f16> = numbers(5, cpu.tokens.len() * width).into_iter().map(f16::from_f32).collect();
    let before = attended(&cpu, &qkv, heads, head_width);
    qkv[70 * width..135 * width].fill(f16::NAN);
    let after = attended(&cpu, &qkv, heads, head_width);
    for (row, (before, after)) in
        before.chunks_exact(width / 3).zip(after.chunks_exact(width / 3)).enumerate()
    {
        if (70..135).contains(&row) {
            assert!(after.iter().all(|x| x.is_nan()), "row {row}");
        } else {
            assert_eq!(before, after, "row {row}");
        }
    }
}

#[test]
fn layer_norm_is_the_cpus_for_any_width() {
    let mut runner = TestRunner::default();
    let strategy = (1usize..700, 1u64..1_000_000, -30.0f32..30.0);
    runner
        .run(&strategy, |(width, seed, centre)| {
            let mut cpu = Cpu::new(16, &[5, 9]);
            let table: Vec<f32> = numbers(seed, 256 * width).into_iter().map(|x| x + centre).collect();
            let (rows, values) = cpu.rows(&table, width);
            let (scale, shift) = (numbers(seed + 1, width), numbers(seed + 2, width));
            let norm = cpu.ops.norm(&tensor(&[width], &scale), &tensor(&[width], &shift), 1e-5).unwrap();
            let mut out = cpu.ops.activations(cpu.tokens.len(), width).unwrap();
            cpu.ops.layer_norm(&cpu.layout, &rows, &norm, &mut out).unwrap();
            let mut got = vec![f32::NAN; values.len()];
            twin::layer_norm(&values, &scale, &shift, &mut got, cpu.tokens.len(), width, 1e-5);
            let (expected, got) = cpu.residues(&out, &got, width);
            // Rows around 30 know their mean to 2e-6; narrow rows may magnify that.
            let tolerance = if width < 8 { 1e-2 } else { 2e-4 };
            assert_near(&got, &expected, tolerance, &format!("width {width}, seed {seed}"));
            Ok(())
        })
        .unwrap();
}

#[test]
fn embeddings_are_the_cpus_bit_for_bit_with_masks_too() {
    let hidden = 20;
    let mut batch = Batch::default();
    batch.push_tokens(0, &[0, 5, 32, 7, 32, 2], 4);
    batch.push_tokens(1, &[0, 9, 2], 1);
    let long: Vec<u8> = (0..150).map(|i| if i % 9 == 4 { 32 } else { (i % 33) as u8 }).collect();
    batch.push_tokens(2, &long, 148);
    let table = numbers(3, 33 * hidden);
    let mut ops = CpuOps::new(2, 1, Precision::Fp32).unwrap();
    let layout = ops.layout(&batch).unwrap();
    let prepared = ops.table(&tensor(&[33, hidden], &table)).unwrap();
    let mut rows = ops.activations(batch.token_count(), hidden).unwrap();
    let cu_seqlens: Vec<i32> = batch.cu_seqlens.iter().map(|&limit| limit as i32).collect();
    let tiles = tiles(&batch.cu_seqlens);
    let twin_layout = Layout { batch: batch.clone(), cu_seqlens, tiles };
    let pooled: Vec<i32> = batch.pooled_residues.iter().map(|&rows| rows as i32).collect();
    for dropout in [true, false] {
        ops.embed(&layout, &prepared, dropout, &mut rows).unwrap();
        let mut got = vec![f32::NAN; batch.token_count() * hidden];
        let Layout { cu_seqlens, tiles, .. } = &twin_layout;
        twin::embed(&batch.tokens, cu_seqlens, tiles, &table, &mut got, hidden, dropout);
        for pooling in [Pooling::None, Pooling::Bos] {
            let expected = ops.pool(&layout, &rows, hidden, pooling).unwrap();
            let (got, flags) = pool(&got, &twin_layout, &pooled, hidden, pooling);
            assert_eq!(got, expected, "{pooling:?}, dropout {dropout}");
            assert_eq!(flags, [0, 0, 0]);
        }
    }
}

#[test]
fn epilogues_are_the_cpus() {
    let (inputs, outputs) = (16, 40);
    let mut cpu = Cpu::new(16, &[40, 90]);
    let (x, values) = cpu.rows(&numbers(1, 256 * inputs), inputs);
    let (weight, bias) = (numbers(2, outputs * inputs), numbers(3, outputs));
    let (shape, bias_shape) = ([outputs, inputs], [outputs]);
    let part = LinearRows { weight: tensor(&shape, &weight), bias: tensor(&bias_shape, &bias) };
    let linear = cpu.ops.linear(&[part]).unwrap();
    let products: Vec<f32> = values
        .chunks_exact(inputs)
        .flat_map(|x| {
            weight
                .chunks_exact(inputs)
                .map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum())
                .collect::<Vec<f32>>()
        })
        .collect();
    for epilogue in [Epilogue::Bias, Epilogue::Gelu, Epilogue::Residual] {
        let (mut out, before) = cpu.rows(&numbers(4, 256 * outputs), outputs);
        cpu.ops.apply(&cpu.layout, &x, &linear, epilogue, &mut out).unwrap();
        let mut got = products.clone();
        match epilogue {
            Epilogue::Bias => twin::bias(&mut got, &bias, outputs),
            Epilogue::Gelu => {
                let mut apart = products.clone();
                twin::bias(&mut apart, &bias, outputs);
                twin::gelu(&mut apart);
                twin::bias_gelu(&mut got, &bias, outputs);
                assert_eq!(got, apart);
            }
            Epilogue::Residual => {
                got.clone_from(&before);
                twin::bias_residual(&products, &bias, &mut got, outputs);
            }
        }
        let (expected, got) = cpu.residues(&out, &got, outputs);
        assert_near(&got, &expected, 1e-5, &format!("{epilogue:?}"));
    }
}

#[test]
fn gelu_is_exact_and_keeps_what_is_not_finite() {
    let mut x: Vec<f32> = (-120_000..=120_000).map(|i| i as f32 * 1e-4).chain([-1e6, 1e6]).collect();
    let before = x.clone();
    twin::gelu(&mut x);
    for (x, y) in before.into_iter().zip(x) {
        let exact = 0.5 * f64::from(x) * libm::erfc(-f64::from(x) / std::f64::consts::SQRT_2);
        assert!((f64::from(y) - exact).abs() <= 1e-7 * f64::from(x).abs().max(1e-30), "gelu({x}) = {y}");
    }
    // As the device writes NaN: its bits must not become those of a number.
    let mut x = [f32::from_bits(0x7fff_ffff), f32::NAN, f32::INFINITY];
    twin::gelu(&mut x);
    assert!(x.iter().all(|x| !x.is_finite()), "{x:?}");
}

#[test]
fn pooling_is_the_cpus_and_flags_what_is_not_finite() {
    for width in [1, 2, 63, 64, 65, 130] {
        let mut cpu = Cpu::new(16, &[3, 4, 12, 40, 900]);
        // Far from zero, where a plain f32 sum of hundreds of rows would show.
        let table: Vec<f32> = numbers(width as u64, 256 * width).into_iter().map(|x| 1_000.0 + x).collect();
        let (rows, x) = cpu.rows(&table, width);
        let pooled = cpu.pooled();
        for pooling in [Pooling::Mean, Pooling::Max, Pooling::Bos, Pooling::None] {
            let expected = cpu.ops.pool(&cpu.layout, &rows, width, pooling).unwrap();
            let (got, flags) = pool(&x, &cpu.twin, &pooled, width, pooling);
            assert_near(&got, &expected, 1.2e-7, &format!("{pooling:?}, width {width}"));
            assert_eq!(flags, [0; 5]);

            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                // The last pooled residue of the last sequence but one, its BOS and its EOS.
                let start = cpu.twin.cu_seqlens[3] as usize;
                let mut x = x.clone();
                x[(start + pooled[3] as usize + 1) * width - 1] = bad;
                x[(start + 40) * width - 1] = bad;
                let (_, flags) = pool(&x, &cpu.twin, &pooled, width, pooling);
                let seen = match pooling {
                    Pooling::Mean | Pooling::None => true,
                    Pooling::Max => bad != f32::NEG_INFINITY,
                    Pooling::Bos => false,
                };
                assert_eq!(flags, [0, 0, 0, i32::from(seen), 0], "{pooling:?} {bad}");
            }
        }
    }
}

#[test]
fn conversions_round_to_nearest_and_tell_of_overflow() {
    let x = [1.0f32, 1.0 + 1.0 / 2048.0, 65_504.0, 65_519.0, -0.1, 1e-8, f32::INFINITY, f32::NAN];
    let mut half = [f16::ZERO; 8];
    assert!(!twin::convert(&x, &mut half));
    assert_eq!(
        half[..5].iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
        [0x3c00, 0x3c00, 0x7bff, 0x7bff, 0xae66]
    );
    assert_eq!(half[5], f16::ZERO);
    assert!(half[6].is_infinite() && half[7].is_nan());
    assert!(twin::convert(&[65_520.0f32], &mut half));
    let mut brain = [bf16::ZERO; 1];
    assert!(!twin::convert(&[65_520.0f32], &mut brain));
    assert!(twin::convert(&[f32::MAX], &mut brain));
    let mut back = [0.0f32; 1];
    assert!(!twin::convert(&[bf16::from_f32(-2.5)], &mut back));
    assert_eq!(back, [-2.5]);
}
