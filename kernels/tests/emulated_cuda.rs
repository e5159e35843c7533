//! The emulated CUDA itself: what a GPU would do wrong of a wrong program, it does wrong, too.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "emulation/alone.rs"]
mod alone;
mod emulation;
#[path = "../../tests/fake_nvml/fake.rs"]
mod fake;
#[path = "emulation/nvml.rs"]
mod nvml;
mod seeded;

use std::ffi::c_void;
use std::sync::Arc;

use alone::{Process, alone, started};
use cudarc::cublaslt::result as blas;
use cudarc::cublaslt::sys as blas_sys;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig,
    PushKernelArg, result, sys,
};
use cudarc::nvrtc::{CompileOptions, Ptx, compile_ptx_with_opts, result as rtc, sys as rtc_sys};
use fake::{FakeNvml, TWO_GPUS};
use half::f16;
use kernels::cuda::twin::{self, Attend};
use kernels::cuda::{COMPILE_OPTIONS, Kernel, Launch, Number, Source, attention_scale, rotary_angles, tiles};
use seeded::numbers;

fn code<T: std::fmt::Debug>(result: Result<T, result::DriverError>) -> u32 {
    result.unwrap_err().0 as u32
}

fn context() -> Arc<CudaContext> {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: the tests order their streams themselves; that is what they are about.
    unsafe { context.disable_event_tracking() };
    context
}

/// A source of ours compiled as the engine does, or any other text.
fn load(context: &Arc<CudaContext>, text: &str, names: &[&str]) -> Vec<CudaFunction> {
    let text = std::ffi::CString::new(text).unwrap();
    let program = rtc::create_program(&text, None).unwrap();
    let options = [&COMPILE_OPTIONS[..], &["--gpu-architecture=sm_90"]].concat();
    // SAFETY: the program lives until it is destroyed, and the binary has the size that was asked for.
    let binary = unsafe {
        let compiled = rtc::compile_program(program, &options);
        let log = rtc::get_program_log(program).unwrap();
        assert!(compiled.is_ok(), "{}", log.iter().map(|&byte| byte as u8 as char).collect::<String>());
        let mut bytes = 0;
        rtc_sys::nvrtcGetCUBINSize(program, &mut bytes).result().unwrap();
        let mut binary = vec![0u8; bytes];
        rtc_sys::nvrtcGetCUBIN(program, binary.as_mut_ptr().cast()).result().unwrap();
        rtc::destroy_program(program).unwrap();
        binary
    };
    let module = context.load_module(Ptx::from_binary(binary)).unwrap();
    names.iter().map(|name| module.load_function(name).unwrap()).collect()
}

fn config(launch: Launch) -> LaunchConfig {
    let Launch { grid, block, shared_bytes } = launch;
    LaunchConfig { grid_dim: grid.into(), block_dim: block.into(), shared_mem_bytes: shared_bytes }
}

#[test]
fn a_missing_wait_between_streams_gives_a_wrong_result() {
    if !alone("a_missing_wait_between_streams_gives_a_wrong_result", "order=late") {
        return;
    }
    let context = context();
    let (one, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let read = |wait: bool| {
        let mut memory = one.alloc_zeros::<u32>(1000).unwrap();
        one.synchronize().unwrap();
        one.memcpy_htod(&vec![7u32; 1000], &mut memory).unwrap();
        if wait {
            other.wait(&one.record_event(None).unwrap()).unwrap();
        }
        let found = other.clone_dtoh(&memory).unwrap();
        one.synchronize().unwrap();
        found
    };
    assert_eq!(read(true), vec![7; 1000]);
    assert_eq!(read(false), vec![0; 1000]);
}

#[test]
fn pinned_memory_is_read_when_the_copy_is_executed() {
    if !alone("pinned_memory_is_read_when_the_copy_is_executed", "order=late") {
        return;
    }
    let context = context();
    let stream = context.new_stream().unwrap();
    // SAFETY: both are written before they are read.
    let (mut pinned, mut memory) =
        unsafe { (context.alloc_pinned::<u32>(64).unwrap(), stream.alloc::<u32>(64).unwrap()) };
    pinned.as_mut_slice().unwrap().fill(1);
    // SAFETY: as long as the memory; changing the source before the copy's end is what is tested.
    unsafe {
        let source = std::slice::from_raw_parts(pinned.as_ptr().unwrap(), 64);
        let (address, _guard) = memory.device_ptr_mut(&stream);
        result::memcpy_htod_async(address, source, stream.cu_stream()).unwrap();
    }
    pinned.as_mut_slice().unwrap().fill(2);
    assert_eq!(stream.clone_dtoh(&memory).unwrap(), vec![2; 64]);
    // Pageable memory is read when the copy is called.
    let mut pageable = vec![3u32; 64];
    stream.memcpy_htod(&pageable, &mut memory).unwrap();
    pageable.fill(4);
    assert_eq!(stream.clone_dtoh(&memory).unwrap(), vec![3; 64]);
}

#[test]
fn events_complete_while_they_are_looked_at() {
    if !alone("events_complete_while_they_are_looked_at", "order=late") {
        return;
    }
    let context = context();
    let stream = context.new_stream().unwrap();
    let mut memory = stream.alloc_zeros::<u32>(64).unwrap();
    for _ in 0..100 {
        stream.memset_zeros(&mut memory).unwrap();
    }
    let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let (start, end) = (stream.record_event(timed).unwrap(), stream.record_event(timed).unwrap());
    let looks = (0..).take_while(|_| !end.is_complete()).count();
    assert!((5..200).contains(&looks), "{looks}");
    // Both were recorded with nothing between them.
    assert_eq!(start.elapsed_ms(&end).unwrap(), 0.0);
    stream.memset_zeros(&mut memory).unwrap();
    assert!((0.001..1.0).contains(&start.elapsed_ms(&stream.record_event(timed).unwrap()).unwrap()));
}

#[test]
fn layer_norm_is_its_twin() {
    if !alone("layer_norm_is_its_twin", "") {
        return;
    }
    let context = context();
    let stream = context.new_stream().unwrap();
    let kernel = Kernel::LayerNorm { x: Number::F32, out: Number::F32 };
    let function = &load(&context, &kernel.source().text(None), &[&kernel.name()])[0];
    let (rows, width) = (9, 300);
    let (x, scale, shift) = (numbers(1, rows * width), numbers(2, width), numbers(3, width));
    let mut expected = vec![0.0; rows * width];
    twin::layer_norm(&x, &scale, &shift, &mut expected, rows, width, 1e-5);
    let [x, scale, shift] = [x, scale, shift].map(|values| stream.clone_htod(&values).unwrap());
    // SAFETY: the kernel writes all of it.
    let mut out = unsafe { stream.alloc::<f32>(rows * width) }.unwrap();
    let (rows_, width_, epsilon) = (rows as i32, width as i32, 1e-5f32);
    let mut launch = stream.launch_builder(function);
    launch.arg(&x).arg(&scale).arg(&shift).arg(&mut out).arg(&rows_).arg(&width_).arg(&epsilon);
    // SAFETY: the arguments are those of the source.
    unsafe { launch.launch(config(Launch::layer_norm(rows))) }.unwrap();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), expected);
}

#[test]
fn attention_is_its_twin() {
    if !alone("attention_is_its_twin", "") {
        return;
    }
    let context = context();
    let stream = context.new_stream().unwrap();
    let (head_width, heads) = (16, 20);
    let limits = [0u32, 65, 68, 200];
    let list = tiles(&limits);
    let (tokens, width) = (200, heads * head_width);
    let qkv: Vec<f16> = numbers(5, tokens * 3 * width).into_iter().map(f16::from_f32).collect();
    let (cosines, sines) = rotary_angles(head_width, 200);
    let scale = attention_scale(head_width);
    let cu_seqlens = limits.map(|limit| limit as i32);
    let mut expected = vec![f16::NAN; tokens * width];
    let attend = Attend {
        qkv: &qkv,
        cu_seqlens: &cu_seqlens,
        tiles: &list,
        cosines: &cosines,
        sines: &sines,
        heads,
        scale,
    };
    twin::attention(attend, head_width, &mut expected);

    let kernel = Kernel::Attention { number: Number::F16, head_width };
    let function = &load(&context, &Source::Attention.text(Some(head_width)), &[&kernel.name()])[0];
    let flat: Vec<i32> = list.iter().flatten().copied().collect();
    let (qkv, cosines) = (stream.clone_htod(&qkv).unwrap(), stream.clone_htod(&cosines).unwrap());
    let (sines, cu_seqlens) = (stream.clone_htod(&sines).unwrap(), stream.clone_htod(&cu_seqlens).unwrap());
    let flat = stream.clone_htod(&flat).unwrap();
    let mut out = stream.alloc_zeros::<f16>(tokens * width).unwrap();
    let heads_ = heads as i32;
    let mut launch = stream.launch_builder(function);
    launch
        .arg(&qkv)
        .arg(&cu_seqlens)
        .arg(&flat)
        .arg(&cosines)
        .arg(&sines)
        .arg(&mut out)
        .arg(&heads_)
        .arg(&scale);
    // SAFETY: the arguments are those of the source.
    unsafe { launch.launch(config(Launch::attention(Number::F16, list.len(), heads))) }.unwrap();
    for (got, expected) in stream.clone_dtoh(&out).unwrap().iter().zip(&expected) {
        let (got, expected) = (got.to_f32(), expected.to_f32());
        assert!((got - expected).abs() <= 1.5e-3 * expected.abs().max(0.125), "{got}, expected {expected}");
    }
}

/// One product, `weight` [outputs, inputs] times `x` [tokens, inputs], as a linear layer has it.
struct Product<'a> {
    handle: blas_sys::cublasLtHandle_t,
    stream: &'a Arc<CudaStream>,
    outputs: usize,
    inputs: usize,
    tokens: usize,
    number: blas_sys::cudaDataType,
    out: blas_sys::cudaDataType,
    workspace: usize,
    epilogue: blas_sys::cublasLtEpilogue_t,
    beta: f32,
}

impl Product<'_> {
    /// D by each algorithm that the library offers. `bias`: [outputs], of D's type.
    fn run<T: DeviceRepr + Copy, O: DeviceRepr + Copy>(
        &self,
        weight: &[T],
        x: &[T],
        bias: &[O],
        before: &[O],
    ) -> Vec<Vec<O>> {
        let stream = self.stream;
        let [weight, x] = [weight, x].map(|values| stream.clone_htod(values).unwrap());
        let bias = stream.clone_htod(bias).unwrap();
        // SAFETY: only the library writes and reads it.
        let workspace = unsafe { stream.alloc::<u8>(self.workspace.max(1)) }.unwrap();
        let layout = |number, rows: usize, columns: usize| {
            blas::create_matrix_layout(number, rows as u64, columns as u64, rows as i64).unwrap()
        };
        let a = layout(self.number, self.inputs, self.outputs);
        let b = layout(self.number, self.inputs, self.tokens);
        let d = layout(self.out, self.outputs, self.tokens);
        let desc = blas::create_matmul_desc(
            blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            blas_sys::cudaDataType::CUDA_R_32F,
        )
        .unwrap();
        let preference = blas::create_matmul_pref().unwrap();
        use blas_sys::cublasLtMatmulDescAttributes_t as Attribute;
        let (bias_address, _bias) = bias.device_ptr(stream);
        let (transposed, one) = (1i32, 1.0f32);
        let mut results = Vec::new();
        // SAFETY: descriptors and memory live until the end, attributes have the types of the library's manual.
        unsafe {
            let set = |attribute, value: *const c_void, bytes| {
                blas::set_matmul_desc_attribute(desc, attribute, value, bytes).unwrap()
            };
            set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, (&raw const transposed).cast(), 4);
            set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, (&raw const self.epilogue).cast(), 4);
            set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, (&raw const bias_address).cast(), 8);
            blas::set_matmul_pref_attribute(
                preference,
                blas_sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const self.workspace).cast(),
                8,
            )
            .unwrap();
            let mut offered = [std::mem::zeroed::<blas_sys::cublasLtMatmulHeuristicResult_t>(); 8];
            let mut count = 0;
            blas_sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                desc,
                a,
                b,
                d,
                d,
                preference,
                8,
                offered.as_mut_ptr(),
                &mut count,
            )
            .result()
            .unwrap();
            for offer in &offered[..count as usize] {
                let mut out = stream.clone_htod(before).unwrap();
                let (to, _to) = out.device_ptr_mut(stream);
                blas::matmul(
                    self.handle,
                    desc,
                    (&raw const one).cast(),
                    (&raw const self.beta).cast(),
                    weight.device_ptr(stream).0 as *const c_void,
                    a,
                    x.device_ptr(stream).0 as *const c_void,
                    b,
                    to as *const c_void,
                    d,
                    to as *mut c_void,
                    d,
                    &offer.algo,
                    workspace.device_ptr(stream).0 as *mut c_void,
                    offer.workspaceSize,
                    stream.cu_stream().cast(),
                )
                .unwrap();
                drop(_to);
                results.push(stream.clone_dtoh(&out).unwrap());
            }
            for layout in [a, b, d] {
                blas::destroy_matrix_layout(layout).unwrap();
            }
            blas::destroy_matmul_desc(desc).unwrap();
            blas::destroy_matmul_pref(preference).unwrap();
        }
        results
    }
}

#[test]
fn products_are_a_loops_by_every_algorithm() {
    if !alone("products_are_a_loops_by_every_algorithm", "") {
        return;
    }
    let context = context();
    let stream = &context.new_stream().unwrap();
    let handle = blas::create_handle().unwrap();
    use blas_sys::cublasLtEpilogue_t::{
        CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_GELU_BIAS,
    };
    use blas_sys::cudaDataType::{CUDA_R_16F, CUDA_R_32F};
    let (outputs, inputs, tokens) = (70, 150, 37);
    let (weight, x) = (numbers(1, outputs * inputs), numbers(2, tokens * inputs));
    let (bias, before) = (numbers(3, outputs), numbers(4, tokens * outputs));
    let halves = |values: &[f32]| values.iter().map(|&x| f16::from_f32(x)).collect::<Vec<f16>>();
    let expected = |weight: &[f32], x: &[f32], token: usize, output: usize| -> f64 {
        let factors = weight[output * inputs..][..inputs].iter().zip(&x[token * inputs..][..inputs]);
        factors.map(|(&w, &x)| f64::from(w) * f64::from(x)).sum()
    };
    let mut product = Product {
        handle,
        stream,
        outputs,
        inputs,
        tokens,
        number: CUDA_R_32F,
        out: CUDA_R_32F,
        workspace: 4 * outputs * tokens,
        epilogue: CUBLASLT_EPILOGUE_BIAS,
        beta: 1.0,
    };
    let results = product.run(&weight, &x, &bias, &before);
    assert_eq!(results.len(), 4);
    for (index, result) in results.iter().enumerate() {
        for (at, &got) in result.iter().enumerate() {
            let (token, output) = (at / outputs, at % outputs);
            let sum = expected(&weight, &x, token, output) + f64::from(bias[output]) + f64::from(before[at]);
            assert!(
                (f64::from(got) - sum).abs() < 1e-4 * sum.abs().max(1.0),
                "{index} {at}: {got}, expected {sum}"
            );
        }
        assert!(results[..index].iter().all(|other| other != result), "algorithm {index} is no other's");
    }
    // Without the room, the algorithm that needs it is not offered.
    product.workspace = 100;
    product.beta = 0.0;
    product.epilogue = CUBLASLT_EPILOGUE_GELU_BIAS;
    let nothing = vec![f32::NAN; tokens * outputs];
    let results = product.run(&weight, &x, &bias, &nothing);
    assert_eq!(results.len(), 2);
    for (at, &got) in results[0].iter().enumerate() {
        let x = expected(&weight, &x, at / outputs, at % outputs) + f64::from(bias[at % outputs]);
        let gelu = 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x * x * x)).tanh());
        assert!((f64::from(got) - gelu).abs() < 1e-4 * gelu.abs().max(1.0), "{at}: {got}, expected {gelu}");
    }
    (product.number, product.out, product.epilogue) = (CUDA_R_16F, CUDA_R_32F, CUBLASLT_EPILOGUE_DEFAULT);
    let wide = |values: &[f32]| halves(values).iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
    let results = product.run(&halves(&weight), &halves(&x), &bias, &nothing);
    for (at, &got) in results[1].iter().enumerate() {
        let sum = expected(&wide(&weight), &wide(&x), at / outputs, at % outputs);
        assert!((f64::from(got) - sum).abs() < 1e-4 * sum.abs().max(1.0), "{at}: {got}, expected {sum}");
    }
    // SAFETY: made above and not used any more.
    unsafe { blas::destroy_handle(handle) }.unwrap();
}

#[test]
fn memory_ends_where_the_script_says() {
    if !alone("memory_ends_where_the_script_says", "memory=10M;used=1M;fail=alloc@4:out_of_memory") {
        return;
    }
    let context = context();
    let stream = context.new_stream().unwrap();
    assert_eq!(context.mem_get_info().unwrap(), (9 << 20, 10 << 20));
    // SAFETY: never read.
    let alloc = |bytes| unsafe { stream.alloc::<u8>(bytes) };
    let six = alloc(6 << 20).unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, 3 << 20);
    assert_eq!(code(alloc((3 << 20) + 1)), 2);
    // What was freed in the stream before is used again.
    drop(six);
    let eight = alloc(8 << 20).unwrap();
    assert_eq!(code(alloc(1)), 2);
    assert_eq!(stream.clone_dtoh(&eight).unwrap()[..4], [0xff; 4]);
    drop(eight);
    context.synchronize().unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, 9 << 20);
}

const KERNELS: &str = "
extern \"C\" __global__ void add(unsigned* x, unsigned by, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) x[i] += by;
}
extern \"C\" __global__ void __launch_bounds__(64) beyond(unsigned* x, int count) { x[count] = 1; }
";

fn add(
    stream: &Arc<CudaStream>,
    function: &CudaFunction,
    x: &mut CudaSlice<u32>,
    by: u32,
) -> Result<(), result::DriverError> {
    let count = x.len() as i32;
    let mut launch = stream.launch_builder(function);
    launch.arg(x).arg(&by).arg(&count);
    // SAFETY: the arguments are those of the source.
    unsafe { launch.launch(LaunchConfig::for_num_elems(count as u32)) }.map(|_| ())
}

#[test]
fn work_that_fails_takes_its_gpu_away() {
    if !alone(
        "work_that_fails_takes_its_gpu_away",
        "devices=2;fail=launch@3:illegal_address:device=0;fail=launch@2:launch_out_of_resources:device=1",
    ) {
        return;
    }
    let stop = |ordinal| {
        let context = CudaContext::new(ordinal).unwrap();
        let stream = context.new_stream().unwrap();
        let function = load(&context, KERNELS, &["add"]).remove(0);
        let mut x = stream.alloc_zeros::<u32>(10).unwrap();
        add(&stream, &function, &mut x, 1).unwrap();
        (context, stream, function, x)
    };
    let (context, stream, function, mut x) = stop(0);
    add(&stream, &function, &mut x, 1).unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [2; 10]);
    // Accepted, and noticed by whoever waits for it; from then on by everybody.
    add(&stream, &function, &mut x, 1).unwrap();
    assert_eq!(code(stream.synchronize()), 700);
    assert_eq!(code(stream.clone_dtoh(&x)), 700);
    assert_eq!(code(context.mem_get_info()), 700);
    assert_eq!(code(CudaContext::new(0)), 700);
    // Any other failure is that call's alone.
    let (_context, stream, function, mut x) = stop(1);
    assert_eq!(code(add(&stream, &function, &mut x, 1)), 701);
    add(&stream, &function, &mut x, 1).unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [2; 10]);
    // Its drops fail, too, which the safe layer keeps to itself.
    std::mem::forget((context, function));
}

#[test]
fn a_fault_that_happens_once_ends_one_process_only() {
    const TEST: &str = "a_fault_that_happens_once_ends_one_process_only";
    let folder = tempfile::tempdir().unwrap();
    let once = folder.path().join("once");
    let script = format!("exit=launch@2:33;once={}", once.display());
    for expected in [33, 0] {
        match started(TEST, &script) {
            Process::Own => {
                let context = context();
                let stream = context.new_stream().unwrap();
                let function = load(&context, KERNELS, &["add"]).remove(0);
                let mut x = stream.alloc_zeros::<u32>(10).unwrap();
                for _ in 0..3 {
                    add(&stream, &function, &mut x, 1).unwrap();
                }
                assert_eq!(stream.clone_dtoh(&x).unwrap(), [3; 10]);
                return;
            }
            Process::First(output, text) => {
                assert_eq!(output.status.code(), Some(expected), "{text}");
                assert!(once.exists());
            }
            Process::Skipped => return,
        }
    }
}

#[test]
fn a_kernel_that_leaves_its_memory_is_told() {
    // The GPU's name is the number that is written, of ten.
    let told = [
        ("name=10", "byte 0 behind the 40 allocated"),
        ("name=1500", "kernel beyond touches 0x"),
        ("name=-1", "kernel beyond touches 0x"),
    ];
    for (script, message) in told {
        match started("a_kernel_that_leaves_its_memory_is_told", script) {
            Process::Own => {
                let context = context();
                let stream = context.new_stream().unwrap();
                let function = load(&context, KERNELS, &["beyond"]).remove(0);
                let x = stream.alloc_zeros::<u32>(10).unwrap();
                let written: i32 = context.name().unwrap().parse().unwrap();
                let mut launch = stream.launch_builder(&function);
                launch.arg(&x).arg(&written);
                // More threads than the kernel is compiled for.
                // SAFETY: is refused.
                let refused = unsafe { launch.launch(LaunchConfig::for_num_elems(65)) };
                assert_eq!(code(refused), 701);
                let one = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
                // SAFETY: what it does wrong is noticed.
                unsafe { launch.launch(one) }.unwrap();
                stream.synchronize().unwrap();
                return;
            }
            Process::First(output, text) => {
                assert!(!output.status.success());
                assert!(text.contains(message) && text.contains("kernel beyond"), "{script}: {text}");
            }
            Process::Skipped => return,
        }
    }
}

#[test]
fn work_that_is_not_told_to_wait_runs_ahead() {
    if !alone("work_that_is_not_told_to_wait_runs_ahead", "seed=3") {
        return;
    }
    let context = context();
    let (one, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let function = load(&context, KERNELS, &["add"]).remove(0);
    let mut x = one.alloc_zeros::<u32>(10).unwrap();
    // The second stream brings what comes next; true if the first one had all it needed of what was before.
    let mut round = |wait: bool| {
        one.memset_zeros(&mut x).unwrap();
        one.synchronize().unwrap();
        add(&one, &function, &mut x, 1).unwrap();
        let found = x.clone();
        if wait {
            other.join(&one).unwrap();
        }
        other.memcpy_htod(&[50u32; 10], &mut x).unwrap();
        one.synchronize().unwrap();
        other.synchronize().unwrap();
        one.clone_dtoh(&found).unwrap() == [1; 10]
    };
    assert!((0..30).all(|_| round(true)));
    let right = (0..30).filter(|_| round(false)).count();
    assert!((1..30).contains(&right), "{right}");
}

#[test]
fn a_gpu_that_hangs_answers_whoever_does_not_wait() {
    if !alone("a_gpu_that_hangs_answers_whoever_does_not_wait", "hang=launch@2;order=early") {
        return;
    }
    let context = context();
    let stream = context.new_stream().unwrap();
    let function = load(&context, KERNELS, &["add"]).remove(0);
    let mut x = stream.alloc_zeros::<u32>(10).unwrap();
    add(&stream, &function, &mut x, 1).unwrap();
    let before = stream.record_event(None).unwrap();
    add(&stream, &function, &mut x, 1).unwrap();
    let after = stream.record_event(None).unwrap();
    before.synchronize().unwrap();
    for _ in 0..100 {
        assert!(!after.is_complete());
    }
    std::thread::spawn(move || after.synchronize().unwrap());
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(before.is_complete());
    std::process::exit(only_passed());
}

/// What the harness would print: the process ends without it, since its drops would wait for the GPU.
fn only_passed() -> i32 {
    println!("1 passed");
    0
}

#[test]
fn a_captured_stream_is_done_again_by_each_launch() {
    if !alone("a_captured_stream_is_done_again_by_each_launch", "") {
        return;
    }
    let context = context();
    let (stream, side) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let function = load(&context, KERNELS, &["add"]).remove(0);
    let mut x = stream.alloc_zeros::<u32>(10).unwrap();
    let mut y = stream.alloc_zeros::<u32>(10).unwrap();
    stream.synchronize().unwrap();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let flags = sys::CUgraphInstantiate_flags(0);
    stream.begin_capture(mode).unwrap();
    add(&stream, &function, &mut x, 1).unwrap();
    side.join(&stream).unwrap();
    add(&side, &function, &mut y, 10).unwrap();
    stream.join(&side).unwrap();
    add(&stream, &function, &mut x, 100).unwrap();
    let graph = stream.end_capture(flags).unwrap().unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [0; 10]);
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [20; 10]);
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [202; 10]);
    // Waiting spoils a capture.
    stream.begin_capture(mode).unwrap();
    assert_eq!(code(stream.synchronize()), 900);
    assert_eq!(code(stream.end_capture(flags).map(|_| ())), 901);
    // So does a stream that does not come back.
    stream.begin_capture(mode).unwrap();
    side.join(&stream).unwrap();
    add(&side, &function, &mut y, 10).unwrap();
    assert_eq!(code(stream.end_capture(flags).map(|_| ())), 904);
    add(&stream, &function, &mut x, 1).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn captures_fail_as_the_script_says_and_where_they_allocate() {
    let name = "captures_fail_as_the_script_says_and_where_they_allocate";
    let faults = "fail=capture@1:out_of_memory;fail=capture@3:illegal_state;fail=instantiate@1:out_of_memory";
    if !alone(name, faults) {
        return;
    }
    let context = context();
    let stream = context.new_stream().unwrap();
    let function = load(&context, KERNELS, &["add"]).remove(0);
    let mut x = stream.alloc_zeros::<u32>(10).unwrap();
    stream.synchronize().unwrap();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let flags = sys::CUgraphInstantiate_flags(0);
    // The first does not begin, the second does not end, the third is not made ready.
    assert_eq!(code(stream.begin_capture(mode)), 2);
    add(&stream, &function, &mut x, 1).unwrap();
    for failure in [401, 2] {
        stream.begin_capture(mode).unwrap();
        add(&stream, &function, &mut x, 10).unwrap();
        assert_eq!(code(stream.end_capture(flags).map(|_| ())), failure);
    }
    // The stream is itself again, and what was captured is not done.
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [1; 10]);
    // Memory spoils a capture where its own thread asks for it.
    stream.begin_capture(mode).unwrap();
    let other = context.clone();
    std::thread::spawn(move || {
        other.bind_to_thread().unwrap();
        // SAFETY: freed, once.
        unsafe { result::free_sync(result::malloc_sync(64).unwrap()) }.unwrap();
    })
    .join()
    .unwrap();
    add(&stream, &function, &mut x, 100).unwrap();
    // SAFETY: nothing is allocated.
    assert_eq!(code(unsafe { result::malloc_sync(64) }), 900);
    assert_eq!(code(add(&stream, &function, &mut x, 100)), 901);
    assert_eq!(code(stream.end_capture(flags).map(|_| ())), 901);
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [1; 10]);
}

#[test]
fn gpus_are_those_of_the_management_library_and_of_the_variable() {
    const TEST: &str = "gpus_are_those_of_the_management_library_and_of_the_variable";
    if !alone(TEST, "devices=3;capability=9.0,8.0,7.5;memory=1G,2M") {
        return;
    }
    // Set before the first call of the process's only test.
    // SAFETY: no other thread reads variables now.
    unsafe { std::env::set_var("CUDA_VISIBLE_DEVICES", format!("2,{},1,GPU-e", nvml::uuid(0))) };
    // The list ends at what does not name one GPU.
    assert_eq!(CudaContext::device_count().unwrap(), 3);
    let fake = FakeNvml::new(&nvml::nvml_script(3, 2 << 20));
    let managed = kernels::nvml::Nvml::open(&kernels::nvml::Library::At(fake.path())).unwrap();
    for (ordinal, of_machine, capability) in [(0, 2, (7, 5)), (1, 0, (9, 0))] {
        let context = CudaContext::new(ordinal).unwrap();
        let uuid = context.uuid().unwrap().bytes.map(|byte| format!("{:02x}", byte as u8)).concat();
        let identity = managed.gpu(&of_machine.to_string()).unwrap().identity().clone();
        assert_eq!(identity.uuid.unwrap().replace('-', ""), format!("GPU{uuid}"));
        assert_eq!(identity.pci_bus_id.unwrap(), nvml::pci(of_machine));
        use sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID;
        let bus = context.attribute(CU_DEVICE_ATTRIBUTE_PCI_BUS_ID).unwrap();
        assert_eq!(nvml::pci(of_machine), format!("00000000:{bus:02X}:00.0"));
        assert_eq!(context.compute_capability().unwrap(), capability);
    }
    assert_eq!(CudaContext::new(0).unwrap().total_mem().unwrap(), 2 << 20);
    // Binaries are for their generation.
    let old = CudaContext::new(0).unwrap();
    let options =
        CompileOptions { options: vec!["--gpu-architecture=sm_90".into()], ..CompileOptions::default() };
    let module = compile_ptx_with_opts(KERNELS, options).unwrap();
    assert_eq!(code(old.load_module(module).map(|_| ())), 209);
    fake.answers(TWO_GPUS);
}

#[test]
fn a_trace_lists_calls_and_what_is_executed() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    if alone("a_trace_lists_calls_and_what_is_executed", &format!("trace={}", trace.display())) {
        let context = context();
        let stream = context.new_stream().unwrap();
        let function = load(&context, KERNELS, &["add"]).remove(0);
        let mut x = stream.alloc_zeros::<u32>(10).unwrap();
        add(&stream, &function, &mut x, 1).unwrap();
        stream.synchronize().unwrap();
        return;
    }
    let Ok(text) = std::fs::read_to_string(&trace) else {
        assert!(emulation::EmulatedCuda::built().is_none(), "no trace");
        return;
    };
    let what: Vec<&str> = text.lines().map(|line| line.splitn(3, ' ').nth(2).unwrap()).collect();
    let at = |wanted: &str| {
        what.iter().position(|line| *line == wanted).unwrap_or_else(|| panic!("{wanted}: {text}"))
    };
    assert!(at("cuLaunchKernel") < at("cuStreamSynchronize"));
    assert!(at("cuStreamSynchronize") < at("run memset 40"));
    assert!(at("run memset 40") < at("run kernel add"));
    assert_eq!(what.iter().filter(|line| line.contains("Synchronize")).count(), 1);
}
