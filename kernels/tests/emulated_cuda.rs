//! The emulated CUDA itself: what a GPU would do wrong of a wrong program, it does wrong, too.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "emulation/alone.rs"]
mod alone;
mod emulation;

use std::sync::Arc;

use alone::alone;
use cudarc::driver::{CudaContext, CudaFunction, LaunchConfig, PushKernelArg, result, sys};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use half::f16;
use kernels::cuda::twin::{self, Attend};
use kernels::cuda::{COMPILE_OPTIONS, Kernel, Launch, Number, Source, attention_scale, rotary_angles, tiles};

/// Numbers of either sign, the same for the same seed.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next() * 4.0 + next()).collect()
}

fn context() -> Arc<CudaContext> {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: the tests order their streams themselves; that is what they are about.
    unsafe { context.disable_event_tracking() };
    context
}

/// A source of ours compiled as the engine does, or any other text.
fn load(context: &Arc<CudaContext>, text: &str, names: &[&str]) -> Vec<CudaFunction> {
    let mut options: Vec<String> = COMPILE_OPTIONS.map(str::to_owned).to_vec();
    options.push("--gpu-architecture=sm_90".to_owned());
    let options = CompileOptions { options, ..CompileOptions::default() };
    let module = context.load_module(compile_ptx_with_opts(text, options).unwrap()).unwrap();
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
        let (address, _guard) = cudarc::driver::DevicePtrMut::device_ptr_mut(&mut memory, &stream);
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
    assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
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
