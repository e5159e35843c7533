//! The CUDA sources themselves, run without a GPU and held against their twins.
//!
//! The C++ compiler builds each kernel against `emulation/device.hpp`, where threads are fibers and the
//! matrix instructions follow the PTX manual. That shows wrong indices, fragments, tails and most
//! missing barriers. It says nothing of races within a warp, of the device's own roundings in tensor cores and `ex2.approx`, or of speed: those
//! need a GPU.

#![expect(clippy::unwrap_used, reason = "tests")]

mod seeded;

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt::Debug;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use half::{bf16, f16};
use kernels::cuda::twin::{self, Attend, Packed, PoolMode, Stored};
use kernels::cuda::{
    Kernel, Launch, Number, ROTARY_HEAD_WIDTHS, ROTATED_BEYOND, Source, attention_scale, rotary_angles,
    rows_before,
};
use libloading::Library;

/// The kernels of one source; its shared memory and fibers are one block's at a time.
struct Device(Mutex<Library>);

/// Capability whose instructions are emulated. Without tensor cores that serve attend f16 before 7.5, bf16 before
/// 8.0.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Capability {
    Volta = 700,
    Turing = 750,
    New = 900,
}

impl Device {
    /// The kernels of a source, built once for all tests.
    ///
    /// `None`, with a line on standard error, where no suitable C++ compiler is found.
    fn build(source: Source, capability: Capability) -> Option<Arc<Self>> {
        type Built = Arc<OnceLock<Option<Arc<Device>>>>;
        static BUILT: LazyLock<Mutex<HashMap<(Source, Capability), Built>>> = LazyLock::new(Mutex::default);
        let place = Arc::clone(BUILT.lock().unwrap().entry((source, capability)).or_default());
        place.get_or_init(|| Self::compile(source, capability).map(Arc::new)).clone()
    }

    fn compile(source: Source, capability: Capability) -> Option<Self> {
        static COMPILER: OnceLock<Option<String>> = OnceLock::new();
        let folder = tempfile::tempdir().unwrap();
        let compiler = COMPILER.get_or_init(|| {
            let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
            let probe = folder.path().join("probe.cpp");
            std::fs::write(&probe, "#include <ucontext.h>\n_Float16 x = 1;\nint main() { return int(x) - 1; }\n").unwrap();
            let works = Command::new(&compiler)
                .args(["-std=c++17", "-o"])
                .arg(folder.path().join("probe"))
                .arg(&probe)
                .output()
                .is_ok_and(|output| output.status.success());
            if works {
                return Some(compiler);
            }
            // Past the test harness, which would hide it: a skipped check is never silent.
            let line = format!("skipped: running the CUDA sources without a GPU (`{compiler}` does not compile C++ with _Float16; Debian: apt-get install g++; or set CXX)\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            None
        });
        let compiler = compiler.as_ref()?;
        let text = folder.path().join("kernels.cpp");
        let library = folder.path().join("kernels.so");
        std::fs::write(&text, format!("#include \"device.hpp\"\n{}", source.without_instructions())).unwrap();
        let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulation");
        let output = Command::new(compiler)
            .args(["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-unknown-pragmas"])
            // Else the shared memory of a kernel, being static memory of a template, would be one for all devices.
            .args(["-fno-gnu-unique", "-Wl,-Bsymbolic"])
            .arg(format!("-DEMULATED_ARCHITECTURE={}", capability as u32))
            .arg("-I")
            .arg(include)
            .arg(&text)
            .arg("-o")
            .arg(&library)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // SAFETY: our own code, whose loading runs nothing but constructors of empty vectors.
        Some(Self(Mutex::new(unsafe { Library::new(PathBuf::from(&library)) }.unwrap())))
    }

    /// Runs `body`, given the kernel's address, as each thread of a launch.
    fn launch(&self, kernel: Kernel, launch: Launch, body: impl Fn(*const c_void)) {
        struct Work<F>(F, *const c_void);
        extern "C" fn run<F: Fn(*const c_void)>(work: *mut c_void) {
            // SAFETY: `launch` below passes a `Work<F>` that outlives the launch.
            let Work(body, kernel) = unsafe { &*work.cast::<Work<F>>() };
            body(*kernel);
        }
        fn of<F: Fn(*const c_void)>(_: &F) -> extern "C" fn(*mut c_void) {
            run::<F>
        }
        type Start = unsafe extern "C" fn(*const u32, *const u32, extern "C" fn(*mut c_void), *mut c_void);
        assert_eq!(launch.shared_bytes, 0);
        let library = self.0.lock().unwrap();
        let trampoline = of(&body);
        // SAFETY: the types are those of device.hpp; `work` outlives the call.
        unsafe {
            let address = *library.get::<*const c_void>(kernel.name().as_bytes()).unwrap();
            let start = library.get::<Start>(b"launch").unwrap();
            let mut work = Work(body, address);
            start(launch.grid.as_ptr(), launch.block.as_ptr(), trampoline, (&raw mut work).cast());
        }
    }
}

/// Calls the kernel at `$address` as a function of the types given.
macro_rules! call {
    ($address:expr, $($argument:expr => $type:ty),+ $(,)?) => {{
        // SAFETY: the signature is the kernel's in its source; slices have the lengths it states.
        unsafe {
            let kernel: unsafe extern "C" fn($($type),+) = std::mem::transmute($address);
            kernel($($argument),+)
        }
    }};
}

/// Memory aligned as a device's; a mark at its end shows a store behind it.
struct Memory<T> {
    words: Vec<u128>,
    len: usize,
    kind: std::marker::PhantomData<T>,
}

const MARK: u128 = 0x5a5a_5a5a_1234_5678_9abc_def0_5a5a_5a5a;

impl<T: Copy> Memory<T> {
    fn new(values: &[T]) -> Self {
        let words = size_of_val(values).div_ceil(16);
        let mut memory =
            Self { words: vec![MARK; words + 4], len: values.len(), kind: std::marker::PhantomData };
        // SAFETY: the words are at least as long as the values and not they.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr(), memory.words.as_mut_ptr().cast(), values.len())
        };
        memory
    }

    fn pointer(&self) -> *const T {
        self.words.as_ptr().cast()
    }

    fn target(&mut self) -> *mut T {
        self.words.as_mut_ptr().cast()
    }

    /// What was written; fails if anything behind it was.
    fn values(&self) -> Vec<T> {
        let end = self.len * size_of::<T>();
        let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mark = MARK.to_ne_bytes();
        assert!((end..bytes.len()).all(|at| bytes[at] == mark[at % 16]), "stored behind the end");
        // SAFETY: `new` has written `len` values of plain numbers there.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len) }.to_vec()
    }
}

fn numbers<T: Stored>(seed: u64, count: usize) -> Vec<T> {
    seeded::numbers(seed, count).into_iter().map(T::narrow).collect()
}

/// Fails unless `got` and `expected` are the same numbers; NaN is NaN.
fn assert_same<T: Stored + Debug>(got: &[T], expected: &[T], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let (got, expected) = (got.widen(), expected.widen());
        assert!(
            got == expected || got.is_nan() && expected.is_nan(),
            "{what}, number {index}: {got:?}, expected {expected:?}"
        );
    }
}

/// Fails unless each of `got` is within `units` of the last place of T, or 1/8 of that of 1, of `expected`.
fn assert_near<T: Stored>(got: &[T], expected: &[T], units: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let (got, expected) = (got.widen(), expected.widen());
        let error = (got - expected).abs() / expected.abs().max(0.125);
        assert!(error <= units * T::EPSILON, "{what}, number {index}: {got:?}, expected {expected:?}");
    }
}

/// What attention kernels read, and where they write.
struct Attention<T> {
    head_width: usize,
    heads: usize,
    packed: Packed,
    qkv: Vec<T>,
    cosines: Vec<f32>,
    sines: Vec<f32>,
    /// Rows of a neighbour full of NaN: whoever reads beyond its own rows shows it.
    poisoned: std::ops::Range<usize>,
}

impl<T: Stored> Attention<T> {
    /// The second sequence is poisoned.
    fn new(head_width: usize, heads: usize, lengths: &[usize]) -> Self {
        let packed = Packed::new(lengths);
        let row = 3 * heads * head_width;
        let mut qkv = numbers::<T>(head_width as u64, packed.tokens * row);
        let poisoned = packed.cu_seqlens[1] as usize..packed.cu_seqlens[2] as usize;
        qkv[poisoned.start * row..poisoned.end * row].fill(T::narrow(f32::NAN));
        let (cosines, sines) = rotary_angles(head_width, packed.longest);
        Self { head_width, heads, packed, qkv, cosines, sines, poisoned }
    }

    /// One sequence of those.
    fn alone(&self, sequence: usize) -> Self {
        let limits = &self.packed.cu_seqlens;
        let rows = limits[sequence] as usize..limits[sequence + 1] as usize;
        let row = 3 * self.heads * self.head_width;
        Self {
            head_width: self.head_width,
            heads: self.heads,
            packed: Packed::new(&[rows.len()]),
            qkv: self.qkv[rows.start * row..rows.end * row].to_vec(),
            cosines: self.cosines.clone(),
            sines: self.sines.clone(),
            poisoned: 0..0,
        }
    }

    fn arguments(&self) -> Attend<'_, T> {
        Attend {
            qkv: &self.qkv,
            cu_seqlens: &self.packed.cu_seqlens,
            tiles: &self.packed.tiles,
            cosines: &self.cosines,
            sines: &self.sines,
            heads: self.heads,
            scale: attention_scale(self.head_width),
        }
    }

    fn out(&self) -> Vec<T> {
        vec![T::narrow(-7.0); self.packed.tokens * self.heads * self.head_width]
    }

    /// The twin's result.
    fn expected(&self) -> Vec<T> {
        let mut out = self.out();
        twin::attention(self.arguments(), self.head_width, &mut out);
        self.clean("twin", &out)
    }

    /// The kernels' result: of those that a host takes where the longest sequence has `longest` tokens.
    fn launch(&self, device: &Device, longest: usize) -> Vec<T> {
        let Self { head_width, heads, packed, .. } = self;
        let (mut qkv, limits) = (Memory::new(&self.qkv), Memory::new(&packed.cu_seqlens));
        let list = Memory::new(&packed.tiles);
        let (cosines, sines) = (Memory::new(&self.cosines), Memory::new(&self.sines));
        let mut out = Memory::new(&self.out());
        let (source, target) = (qkv.target(), out.target());
        let scale = attention_scale(*head_width);
        let (rotate, kernel) = Kernel::attention(T::NUMBER, *head_width, longest);
        if let Some(rotate) = rotate {
            device.launch(rotate, Launch::per_tile(packed.tiles.len()), |kernel| {
                call!(kernel,
                    source => *mut T, limits.pointer() => *const i32, list.pointer() => *const [i32; 2],
                    cosines.pointer() => *const f32, sines.pointer() => *const f32, *heads as i32 => i32)
            });
        }
        device.launch(kernel, Launch::attention(T::NUMBER, packed.tiles.len(), *heads), |kernel| {
            call!(kernel,
                source.cast_const() => *const T, limits.pointer() => *const i32,
                list.pointer() => *const [i32; 2], cosines.pointer() => *const f32,
                sines.pointer() => *const f32, target => *mut T, *heads as i32 => i32, scale => f32)
        });
        qkv.values();
        self.clean(&kernel.name(), &out.values())
    }

    /// All but the poisoned rows, of which each number must be NaN, as no other may be.
    fn clean(&self, name: &str, values: &[T]) -> Vec<T> {
        let rows = || values.chunks_exact(self.heads * self.head_width).enumerate();
        for (row, values) in rows() {
            let nan = self.poisoned.contains(&row);
            assert!(values.iter().all(|x| x.widen().is_nan() == nan), "{name}, row {row}");
        }
        rows().filter(|(row, _)| !self.poisoned.contains(row)).flat_map(|(_, row)| row.to_vec()).collect()
    }
}

/// Lengths around the limits of tiles and blocks of keys.
const LENGTHS: [usize; 7] = [65, 3, 31, 64, 130, 33, 17];

/// More of them, up to several tiles; the second is poisoned.
const BORDERS: [usize; 14] = [1, 5, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257];

/// Lengths on either side of where keys are rotated beforehand; the second is poisoned.
const LONG: [usize; 8] = [ROTATED_BEYOND, ROTATED_BEYOND + 20, ROTATED_BEYOND + 1, 64, 65, 511, 512, 513];

#[test]
fn f32_attention_is_its_twin_bit_for_bit() {
    let Some(device) = Device::build(Source::Attention, Capability::New) else { return };
    for head_width in ROTARY_HEAD_WIDTHS {
        let attention = Attention::<f32>::new(head_width, 2, &LENGTHS);
        let got = attention.launch(&device, attention.packed.longest);
        assert_same(&got, &attention.expected(), &format!("heads of {head_width}"));
    }
}

#[test]
fn attention_on_tensor_cores_is_its_twin() {
    for capability in [Capability::Turing, Capability::New] {
        let Some(device) = Device::build(Source::Attention, capability) else { return };
        for head_width in ROTARY_HEAD_WIDTHS {
            // An odd number of heads, of which the last block has one.
            let attention = Attention::<f16>::new(head_width, 3, &BORDERS);
            let got = attention.launch(&device, 0);
            assert_near(&got, &attention.expected(), 1.5, &format!("f16, heads of {head_width}"));
            if capability == Capability::New {
                let attention = Attention::<bf16>::new(head_width, 1, &BORDERS);
                let got = attention.launch(&device, 0);
                assert_near(&got, &attention.expected(), 1.5, &format!("bf16, heads of {head_width}"));
            }
        }
    }
}

#[test]
fn devices_side_by_side_share_no_memory() {
    let devices = [Capability::Turing, Capability::New].map(|of| Device::build(Source::Attention, of));
    let attention = Attention::<f16>::new(64, 2, &[65, 166]);
    let expected = attention.expected();
    std::thread::scope(|scope| {
        for device in devices.iter().flatten() {
            for _ in 0..8 {
                scope.spawn(|| {
                    assert_near(&attention.launch(device, 0), &expected, 1.5, "beside another device");
                });
            }
        }
    });
}

#[test]
fn keys_rotated_beforehand_change_no_bit() {
    for (capability, head_widths) in
        [(Capability::Turing, &[24, 64][..]), (Capability::New, &ROTARY_HEAD_WIDTHS)]
    {
        let Some(device) = Device::build(Source::Attention, capability) else { return };
        for &head_width in head_widths {
            let attention = Attention::<f16>::new(head_width, 1, &LONG);
            let got = attention.launch(&device, attention.packed.longest);
            assert_same(&got, &attention.launch(&device, 0), &format!("f16, heads of {head_width}"));
            assert_near(&got, &attention.expected(), 1.5, &format!("f16, heads of {head_width}"));
            if capability == Capability::New {
                let attention = Attention::<bf16>::new(head_width, 3, &LONG[..3]);
                let got = attention.launch(&device, attention.packed.longest);
                assert_same(&got, &attention.launch(&device, 0), &format!("bf16, heads of {head_width}"));
            }
        }
    }
}

#[test]
fn the_longest_sequences_of_the_published_models_attend_as_their_twin() {
    let Some(device) = Device::build(Source::Attention, Capability::New) else { return };
    for head_width in [64, 24] {
        let attention = Attention::<f16>::new(head_width, 1, &[1_024, 3, 1_025]);
        let got = attention.launch(&device, attention.packed.longest);
        assert_near(&got, &attention.expected(), 1.5, &format!("f16, heads of {head_width}"));
    }
}

#[test]
fn a_sequence_attends_alone_as_in_a_batch_bit_for_bit() {
    let Some(device) = Device::build(Source::Attention, Capability::New) else { return };
    for head_width in ROTARY_HEAD_WIDTHS {
        let lengths = [65, 3, 51, 102, 166, ROTATED_BEYOND + 16];
        let attention = Attention::<f16>::new(head_width, 2, &lengths);
        let packed = attention.launch(&device, attention.packed.longest);
        let mut at = 0;
        for sequence in (0..lengths.len()).filter(|&sequence| sequence != 1) {
            let alone = attention.alone(sequence).launch(&device, lengths[sequence]);
            let what = format!("heads of {head_width}, {} tokens", lengths[sequence]);
            assert_same(&alone, &packed[at..at + alone.len()], &what);
            at += alone.len();
        }
        assert_eq!(at, packed.len());
    }
}

fn check_rotation<T: Stored + Debug>(device: &Device, head_width: usize) {
    let attention = Attention::<T>::new(head_width, 3, &[65, 7, ROTATED_BEYOND, ROTATED_BEYOND + 1]);
    let mut expected = attention.qkv.clone();
    twin::rotate_keys(attention.arguments(), head_width, &mut expected);
    let changed = expected.iter().zip(&attention.qkv).filter(|(a, b)| a.widen() != b.widen()).count();
    assert!(changed > (ROTATED_BEYOND - 1) * 3 * head_width, "{changed}");
    let mut qkv = Memory::new(&attention.qkv);
    let source = qkv.target();
    let (limits, list) = (Memory::new(&attention.packed.cu_seqlens), Memory::new(&attention.packed.tiles));
    let (cosines, sines) = (Memory::new(&attention.cosines), Memory::new(&attention.sines));
    let kernel = Kernel::RotateKeys { number: T::NUMBER, head_width };
    device.launch(kernel, Launch::per_tile(attention.packed.tiles.len()), |kernel| {
        call!(kernel,
            source => *mut T, limits.pointer() => *const i32, list.pointer() => *const [i32; 2],
            cosines.pointer() => *const f32, sines.pointer() => *const f32, 3 => i32)
    });
    assert_same(&qkv.values(), &expected, &kernel.name());
}

#[test]
fn the_rotation_of_keys_is_its_twin_bit_for_bit() {
    for capability in [Capability::Volta, Capability::New] {
        let Some(device) = Device::build(Source::Attention, capability) else { return };
        for head_width in ROTARY_HEAD_WIDTHS {
            check_rotation::<f16>(&device, head_width);
            check_rotation::<bf16>(&device, head_width);
        }
    }
}

#[test]
fn f16_attention_without_tensor_cores_is_close_to_the_twin() {
    let Some(device) = Device::build(Source::Attention, Capability::Volta) else { return };
    for head_width in ROTARY_HEAD_WIDTHS {
        // Nothing is rounded in between there, which the twin does: a few units.
        for (lengths, heads) in [(&LENGTHS[..], 3), (&LONG[..3], 1)] {
            let attention = Attention::<f16>::new(head_width, heads, lengths);
            let got = attention.launch(&device, attention.packed.longest);
            assert_near(&got, &attention.expected(), 8.0, &format!("f16, heads of {head_width}"));
        }
    }
}

fn check_embed<T: Stored, O: Stored + Debug>(device: &Device) {
    for (hidden, dropout) in [(64, true), (20, true), (264, false), (1, true)] {
        let Packed { cu_seqlens, tiles, tokens, .. } = Packed::new(&LENGTHS);
        let ids: Vec<u8> = (0..tokens).map(|i| if i % 11 == 3 { 32 } else { (i % 33) as u8 }).collect();
        let table = numbers::<T>(7, 33 * hidden);
        let mut expected = vec![O::narrow(f32::NAN); tokens * hidden];
        twin::embed(&ids, &cu_seqlens, &tiles, &table, &mut expected, hidden, dropout);
        let (ids, limits) = (Memory::new(&ids), Memory::new(&cu_seqlens));
        let (list, table) = (Memory::new(&tiles), Memory::new(&table));
        let mut out = Memory::new(&vec![O::narrow(-7.0); tokens * hidden]);
        let target = out.target();
        let kernel = Kernel::Embed { table: T::NUMBER, out: O::NUMBER };
        device.launch(kernel, Launch::per_tile(tiles.len()), |kernel| {
            call!(kernel,
                ids.pointer() => *const u8, limits.pointer() => *const i32, list.pointer() => *const [i32; 2],
                table.pointer() => *const T, target => *mut O, hidden as i32 => i32, i32::from(dropout) => i32)
        });
        assert_same(&out.values(), &expected, &format!("{} hidden {hidden}", kernel.name()));
    }
}

#[test]
fn embeddings_are_their_twins() {
    let Some(device) = Device::build(Source::Embed, Capability::New) else { return };
    check_embed::<f32, f32>(&device);
    check_embed::<f16, f16>(&device);
    check_embed::<f16, f32>(&device);
    check_embed::<bf16, bf16>(&device);
    check_embed::<bf16, f32>(&device);
}

fn check_norm<X: Stored, O: Stored + Debug>(device: &Device) {
    let shapes = [
        (5, 64),
        (1, 1),
        (9, 300),
        (4, 1_280),
        (3, 20),
        (2, 257),
        (3, 1_288),
        (5, 2_560),
        (2, 2_568),
        (2, 5_120),
        (1, 5_160),
        (2, 5_121),
    ];
    for (rows, width) in shapes {
        let x = numbers::<X>(width as u64, rows * width);
        let (scale, shift) = (numbers::<f32>(2, width), numbers::<f32>(3, width));
        let mut expected = vec![O::narrow(f32::NAN); rows * width];
        twin::layer_norm(&x, &scale, &shift, &mut expected, rows, width, 1e-5);
        let (x, scale, shift) = (Memory::new(&x), Memory::new(&scale), Memory::new(&shift));
        // Either does any width.
        let (x_number, number) = (X::NUMBER, O::NUMBER);
        let kernels = [
            Kernel::LayerNorm { x: x_number, out: number },
            Kernel::LayerNormWide { x: x_number, out: number },
        ];
        for kernel in kernels {
            let mut out = Memory::new(&vec![O::narrow(-7.0); rows * width]);
            let target = out.target();
            device.launch(kernel, Launch::layer_norm(rows), |kernel| {
                call!(kernel,
                    x.pointer() => *const X, scale.pointer() => *const f32, shift.pointer() => *const f32,
                    target => *mut O, rows as i32 => i32, width as i32 => i32, 1e-5 => f32)
            });
            assert_same(&out.values(), &expected, &format!("{} width {width}", kernel.name()));
        }
    }
}

#[test]
fn layer_norms_are_their_twins() {
    let Some(device) = Device::build(Source::Norm, Capability::New) else { return };
    check_norm::<f32, f32>(&device);
    check_norm::<f32, f16>(&device);
    check_norm::<f32, bf16>(&device);
    check_norm::<f16, f16>(&device);
    check_norm::<f16, f32>(&device);
    check_norm::<bf16, bf16>(&device);
    check_norm::<bf16, f32>(&device);
}

fn check_epilogues<T: Stored + Debug>(device: &Device) {
    // In 16 bits the kernel's exponential is not the twin's.
    let same = |got: &[T], expected: &[T], what: &str| match T::NUMBER {
        Number::F32 => assert_same(got, expected, what),
        Number::F16 | Number::Bf16 => assert_near(got, expected, 1.0, what),
    };
    for (rows, width) in [(3, 64), (2, 20), (1, 1), (2, 2_560), (5, 13)] {
        let (x, bias) = (numbers::<T>(width as u64, rows * width), numbers::<T>(9, width));
        let add = Memory::new(&bias);
        for kernel in [Kernel::Bias(T::NUMBER), Kernel::BiasGelu(T::NUMBER), Kernel::Gelu(T::NUMBER)] {
            let what = format!("{} width {width}", kernel.name());
            let mut expected = x.clone();
            let mut out = Memory::new(&x);
            let target = out.target();
            if matches!(kernel, Kernel::Gelu(_)) {
                twin::gelu(&mut expected);
                device.launch(
                    kernel,
                    Launch::per_number(rows * width),
                    |kernel| call!(kernel, target => *mut T, (rows * width) as i64 => i64),
                );
            } else {
                match kernel {
                    Kernel::Bias(_) => twin::bias(&mut expected, &bias, width),
                    _ => twin::bias_gelu(&mut expected, &bias, width),
                }
                device.launch(
                    kernel,
                    Launch::per_row(rows, width),
                    |kernel| call!(kernel, target => *mut T, add.pointer() => *const T, width as i32 => i32),
                );
            }
            match kernel {
                Kernel::Bias(_) => assert_same(&out.values(), &expected, &what),
                _ => same(&out.values(), &expected, &what),
            }
        }
    }
}

fn check_residual<P: Stored, R: Stored + Debug>(device: &Device) {
    for (rows, width) in [(3, 64), (2, 20), (2, 2_560)] {
        let product = numbers::<P>(width as u64, rows * width);
        let (bias, residual) = (numbers::<R>(5, width), numbers::<R>(6, rows * width));
        let mut expected = residual.clone();
        twin::bias_residual(&product, &bias, &mut expected, width);
        let (product, bias, mut out) = (Memory::new(&product), Memory::new(&bias), Memory::new(&residual));
        let target = out.target();
        let kernel = Kernel::BiasResidual { product: P::NUMBER, residual: R::NUMBER };
        device.launch(kernel, Launch::per_row(rows, width), |kernel| {
            call!(kernel,
                product.pointer() => *const P, bias.pointer() => *const R, target => *mut R, width as i32 => i32)
        });
        assert_same(&out.values(), &expected, &format!("{} width {width}", kernel.name()));
    }
}

#[test]
fn epilogues_are_their_twins() {
    let Some(device) = Device::build(Source::Epilogue, Capability::New) else { return };
    check_epilogues::<f32>(&device);
    check_epilogues::<f16>(&device);
    check_epilogues::<bf16>(&device);
    check_residual::<f32, f32>(&device);
    check_residual::<f16, f16>(&device);
    check_residual::<f16, f32>(&device);
    check_residual::<bf16, bf16>(&device);
    check_residual::<bf16, f32>(&device);
}

fn check_pool<T: Stored>(device: &Device) {
    for width in [64, 65, 130, 1] {
        let Packed { cu_seqlens, tiles, tokens, .. } = Packed::new(&LENGTHS);
        let sequences = LENGTHS.len();
        let pooled: Vec<i32> = LENGTHS.iter().map(|&length| (length as i32 - 2).min(100)).collect();
        let mut x = numbers::<T>(width as u64, tokens * width);
        // The last pooled number of sequence 3 and what nobody pools of sequence 4.
        let end = cu_seqlens[3] as usize + 1 + pooled[3] as usize;
        x[end * width - 1] = T::narrow(f32::NAN);
        x[(cu_seqlens[5] as usize - 1) * width..][..width].fill(T::narrow(f32::INFINITY));
        let rows = Memory::new(&x);
        let (limits, counts) = (Memory::new(&cu_seqlens), Memory::new(&pooled));
        for mode in [PoolMode::Mean, PoolMode::Bos, PoolMode::Max] {
            let (mut expected, mut expected_flags) = (vec![0.0; sequences * width], vec![0; sequences]);
            twin::pool(&x, &cu_seqlens, &pooled, mode, &mut expected, &mut expected_flags, width);
            let mut out = Memory::new(&vec![-7.0f32; sequences * width]);
            let mut flags = Memory::new(&vec![0i32; sequences]);
            let (target, flag) = (out.target(), flags.target());
            let kernel = Kernel::Pool(T::NUMBER);
            device.launch(kernel, Launch::pool(sequences, width), |kernel| {
                call!(kernel,
                    rows.pointer() => *const T, limits.pointer() => *const i32, counts.pointer() => *const i32,
                    mode as i32 => i32, target => *mut f32, flag => *mut i32, width as i32 => i32)
            });
            assert_same(&out.values(), &expected, &format!("{} {mode:?} width {width}", kernel.name()));
            assert_eq!(flags.values(), expected_flags, "{mode:?}");
            assert_eq!(flags.values()[3], i32::from(mode != PoolMode::Bos), "{mode:?}");
        }

        let pooled_u32: Vec<u32> = pooled.iter().map(|&rows| rows as u32).collect();
        let before = rows_before(&pooled_u32);
        let total = pooled.iter().sum::<i32>() as usize;
        let (mut expected, mut expected_flags) = (vec![0.0; total * width], vec![0; sequences]);
        twin::gather(&x, &cu_seqlens, &tiles, &pooled, &before, &mut expected, &mut expected_flags, width);
        let (list, before) = (Memory::new(&tiles), Memory::new(&before));
        let mut out = Memory::new(&vec![-7.0f32; total * width]);
        let mut flags = Memory::new(&vec![0i32; sequences]);
        let (target, flag) = (out.target(), flags.target());
        let kernel = Kernel::Gather(T::NUMBER);
        device.launch(kernel, Launch::per_tile(tiles.len()), |kernel| {
            call!(kernel,
                rows.pointer() => *const T, limits.pointer() => *const i32, list.pointer() => *const [i32; 2],
                counts.pointer() => *const i32, before.pointer() => *const i32, target => *mut f32,
                flag => *mut i32, width as i32 => i32)
        });
        assert_same(&out.values(), &expected, &format!("{} width {width}", kernel.name()));
        assert_eq!(flags.values(), expected_flags);
        assert_eq!(expected_flags, [0, 0, 0, 1, 0, 0, 0]);
    }
}

#[test]
fn pooled_vectors_and_rows_of_residues_are_their_twins() {
    let Some(device) = Device::build(Source::Pool, Capability::New) else { return };
    check_pool::<f32>(&device);
    check_pool::<f16>(&device);
    check_pool::<bf16>(&device);
}

fn check_convert<S: Stored, D: Stored + Debug>(device: &Device) {
    for (count, largest) in [(1, 1.0f32), (8, 65_504.0), (4_099, 1e-7), (77, 3e38)] {
        let mut from = numbers::<S>(count as u64, count);
        from[count / 2] = S::narrow(largest);
        let mut expected = vec![D::narrow(0.0); count];
        let expected_flag = i32::from(twin::convert(&from, &mut expected));
        let from = Memory::new(&from);
        let (mut out, mut flag) = (Memory::new(&vec![D::narrow(-7.0); count]), Memory::new(&[0i32]));
        let (target, overflowed) = (out.target(), flag.target());
        let kernel = Kernel::Convert { from: S::NUMBER, to: D::NUMBER };
        device.launch(kernel, Launch::per_number(count), |kernel| {
            call!(kernel,
                from.pointer() => *const S, target => *mut D, count as i64 => i64, overflowed => *mut i32)
        });
        assert_same(&out.values(), &expected, &kernel.name());
        assert_eq!(flag.values(), [expected_flag], "{} of {count}", kernel.name());
    }
}

#[test]
fn conversions_are_their_twins() {
    for capability in [Capability::Turing, Capability::New] {
        let Some(device) = Device::build(Source::Convert, capability) else { return };
        check_convert::<f32, f16>(&device);
        check_convert::<f32, bf16>(&device);
        check_convert::<f16, f32>(&device);
        check_convert::<f16, bf16>(&device);
        check_convert::<bf16, f32>(&device);
        check_convert::<bf16, f16>(&device);
    }
}
