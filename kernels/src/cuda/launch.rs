//! Launch geometry of the kernels, and the small tables that they read beside activations.
//!
//! Shared memory is static in every kernel, so a launch asks for none.

use super::sources::Number;

/// Rows of a tile, one thread block's share of a sequence.
pub const TILE_ROWS: usize = 64;

/// Head widths that attention is compiled for: those of the published models, and 16.
pub const ROTARY_HEAD_WIDTHS: [usize; 5] = [16, 24, 32, 64, 128];

/// A tile without rows, which fills a table up: the blocks of `embed_*`, `rotate_keys_*`, `attention_*` and `gather_*` return at once.
///
/// Behind the end of any sequence, and far from the largest `int`, since kernels add to it.
pub const EMPTY_TILE: [i32; 2] = [0, 1 << 30];

/// Tokens of the longest sequence whose keys attention rotates itself, for each tile of queries anew.
///
/// Beyond, a pass of its own that rotates them once costs less, see `attention.cu`.
pub const ROTATED_BEYOND: usize = 384;

/// Numbers of a row that a warp of `layer_norm_*` keeps in registers; `layer_norm_wide_*` keeps twice as many.
pub(super) const NORM_NUMBERS: usize = 2_560;

/// Heads of a block of attention in 16 bits: they share the angles of their rows.
const HEADS_16_BIT: usize = 2;

const WARP: usize = 32;
/// Numbers that a thread loads at once.
const GROUP: usize = 8;
/// Threads of a block where rows or numbers are shared out evenly.
const THREADS: usize = 256;
/// Rows, hence warps, of a block of layer norm.
const NORM_ROWS: usize = 4;
/// Columns of a block of pooling.
const POOL_COLUMNS: usize = 64;

/// Blocks and threads of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Thread blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory; no kernel needs any.
    pub shared_bytes: u32,
}

impl Launch {
    /// The x grid may have 2³¹ - 1 blocks: 100 times what fits any device's memory.
    fn new(blocks: usize, threads: usize) -> Self {
        Self {
            grid: [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1],
            block: [threads as u32, 1, 1],
            shared_bytes: 0,
        }
    }

    /// `embed_*`, `gather_*` and `rotate_keys_*`: a block per tile.
    pub fn per_tile(tiles: usize) -> Self {
        Self::new(tiles, THREADS)
    }

    /// `layer_norm_*` and `layer_norm_wide_*`: a warp per row.
    pub fn layer_norm(rows: usize) -> Self {
        Self::new(rows.div_ceil(NORM_ROWS), NORM_ROWS * WARP)
    }

    /// `attention_*` and `attention_rotated_*`: a block per tile and head, in 16 bits per two heads.
    pub fn attention(number: Number, tiles: usize, heads: usize) -> Self {
        match number {
            Number::F32 => Self::new(tiles * heads, 256),
            Number::F16 | Number::Bf16 => Self::new(tiles * heads.div_ceil(HEADS_16_BIT), 128),
        }
    }

    /// `gelu_*` and `convert_*`: eight numbers per thread.
    pub fn per_number(count: usize) -> Self {
        Self::new(count.div_ceil(GROUP * THREADS), THREADS)
    }

    /// `bias_*`, `bias_gelu_*` and `bias_residual_*`: a block per row.
    pub fn per_row(rows: usize, width: usize) -> Self {
        Self::new(rows, width.div_ceil(GROUP).next_multiple_of(WARP).clamp(WARP, THREADS))
    }

    /// `pool_*`: a block per sequence and 64 columns.
    pub fn pool(sequences: usize, width: usize) -> Self {
        let mut launch = Self::new(sequences, WARP);
        launch.grid[1] = width.div_ceil(POOL_COLUMNS) as u32;
        launch.block[1] = (THREADS / WARP) as u32;
        launch
    }
}

/// The tiles of a batch, {sequence, first row in it}: each row of each sequence in exactly one.
///
/// Longest sequences first: theirs take longest, and last they would run alone.
/// `cu_seqlens`: [sequences + 1], as of [`crate::Batch`].
pub fn tiles(cu_seqlens: &[u32]) -> Vec<[i32; 2]> {
    let length = |sequence: usize| cu_seqlens[sequence + 1] - cu_seqlens[sequence];
    let mut order: Vec<usize> = (0..cu_seqlens.len().saturating_sub(1)).collect();
    order.sort_by_key(|&sequence| std::cmp::Reverse(length(sequence)));
    let mut tiles = Vec::new();
    for sequence in order {
        for first in (0..length(sequence)).step_by(TILE_ROWS) {
            tiles.push([sequence as i32, first as i32]);
        }
    }
    tiles
}

/// Rows of per-residue output that lie before each sequence's: [sequences].
pub fn rows_before(pooled_residues: &[u32]) -> Vec<i32> {
    pooled_residues
        .iter()
        .scan(0, |sum, &rows| {
            let before = *sum;
            *sum += rows as i32;
            Some(before)
        })
        .collect()
}

/// Cosines and sines of every rotary angle, [positions, head width / 2] each.
///
/// As on the CPU: frequencies rounded to f32 like the published ones, angles in f64, since f32 would
/// lose three digits at position 1,000.
pub fn rotary_angles(head_width: usize, positions: usize) -> (Vec<f32>, Vec<f32>) {
    let frequencies = crate::cpu::rotary_frequencies(head_width);
    let angles = || {
        (0..positions).flat_map(|position| {
            frequencies.iter().map(move |&frequency| position as f64 * f64::from(frequency))
        })
    };
    (angles().map(|angle| angle.cos() as f32).collect(), angles().map(|angle| angle.sin() as f32).collect())
}

/// The factor of all scores, `head_width ^ -0.5`.
pub fn attention_scale(head_width: usize) -> f32 {
    (head_width as f32).powf(-0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_each_row_once_longest_sequence_first() {
        let lengths = [3u32, 64, 65, 200, 128, 65];
        let mut cu_seqlens = vec![0];
        for length in lengths {
            cu_seqlens.push(cu_seqlens.last().unwrap() + length);
        }
        let tiles = tiles(&cu_seqlens);
        let mut seen = vec![0; *cu_seqlens.last().unwrap() as usize];
        for [sequence, first] in &tiles {
            let (start, length) = (cu_seqlens[*sequence as usize], lengths[*sequence as usize]);
            for row in *first as u32..length.min(*first as u32 + TILE_ROWS as u32) {
                seen[(start + row) as usize] += 1;
            }
        }
        assert!(seen.iter().all(|&times| times == 1), "{seen:?}");
        let order: Vec<i32> = tiles.iter().map(|[sequence, _]| *sequence).collect();
        assert_eq!(order, [3, 3, 3, 3, 4, 4, 2, 2, 5, 5, 1, 0]);
        assert_eq!(super::tiles(&[]), Vec::<[i32; 2]>::new());
        assert_eq!(super::tiles(&[0]), Vec::<[i32; 2]>::new());
    }

    #[test]
    fn launches_cover_their_work() {
        assert_eq!(Launch::layer_norm(9).grid, [3, 1, 1]);
        assert_eq!(Launch::layer_norm(9).block, [128, 1, 1]);
        assert_eq!(Launch::per_number(2_049).grid, [2, 1, 1]);
        assert_eq!(Launch::per_row(7, 20).block, [32, 1, 1]);
        assert_eq!(Launch::per_row(7, 1_280).block, [160, 1, 1]);
        assert_eq!(Launch::per_row(7, 10_240).block, [256, 1, 1]);
        assert_eq!(Launch::pool(5, 65), Launch { grid: [5, 2, 1], block: [32, 8, 1], shared_bytes: 0 });
        assert_eq!(Launch::attention(Number::F16, 3, 20), Launch::new(30, 128));
        assert_eq!(Launch::attention(Number::Bf16, 3, 5), Launch::new(9, 128));
        assert_eq!(Launch::attention(Number::F32, 3, 5), Launch::new(15, 256));
        assert_eq!(rows_before(&[3, 1, 5]), [0, 3, 4]);
    }
}
